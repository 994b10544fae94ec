"""Small weights of separator, vision and codec for the `nano` profile, with the scripts that trained them."""
