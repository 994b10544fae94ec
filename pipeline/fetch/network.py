"""Which addresses may be talked to, and yt-dlp's HTTP client held to it at every connection it opens.

Checking the first URL would be no protection: pages and redirects lead anywhere, and a name may resolve to something
else the next time. So the check sits where the socket is opened, on the very address that is connected to.
"""

from __future__ import annotations

import functools
import ipaddress
import socket
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
import urllib3.connection
import urllib3.connectionpool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from yt_dlp.networking._helper import _socket_connect, create_connection
from yt_dlp.networking._requests import RequestsHTTPAdapter, RequestsRH
from yt_dlp.networking.exceptions import RequestError
from yt_dlp.utils.networking import select_proxy

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# IPv6 ranges that carry an IPv4 address in their last 32 bits: NAT64 (RFC 6052), IPv4-compatible (RFC 4291)
_CARRIERS = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("::/96"))
# Not for the world either, but global to Python 3.11: Azure's and Oracle's metadata, local NAT64, old site-local
_INSIDE = tuple(map(ipaddress.ip_network, ("168.63.129.16/32", "192.0.0.0/24", "64:ff9b:1::/48", "fec0::/10")))


class RefusedAddress(RequestError):
    """A connection that was not made, because of where it leads."""


def refusal(address: str, *, allow_loopback: bool) -> str:
    """Why no connection to an IP address is made, or "" if it may be."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.is_unspecified:
        return "an address of no machine"
    if ip.is_loopback or _inner(ip).is_loopback:
        return "" if allow_loopback else "an address of this machine"
    ip = _inner(ip)
    if ip.is_link_local or not ip.is_global or ip.is_multicast or any(ip in network for network in _INSIDE):
        return "a private or reserved address"
    return ""


def _inner(ip: IPAddress) -> IPAddress:
    """The IPv4 address that an IPv6 address stands for, or the address itself."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    carried = next((ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) for network in _CARRIERS if ip in network), None)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None) or carried or ip


class VettedRH(RequestsRH):
    """yt-dlp's `requests` handler, http and https only, whose sockets lead to public addresses only.

    Where the environment names a proxy, the proxy opens the connections and the host is vetted as it resolves here;
    allowed loopback addresses never go through a proxy.
    """

    def __init__(self, *, allow_loopback: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.allow_loopback = allow_loopback

    def _create_instance(self, cookiejar: Any, legacy_ssl_support: bool | None = None) -> requests.Session:
        session: requests.Session = super()._create_instance(cookiejar, legacy_ssl_support)
        adapter = _Adapter(
            self.allow_loopback,
            ssl_context=self._make_sslcontext(legacy_ssl_support=legacy_ssl_support),
            max_retries=urllib3.Retry(False),
        )
        session.mount("https://", adapter)
        session.mount("http://", adapter)
        return session


class _Adapter(RequestsHTTPAdapter):
    def __init__(self, allow_loopback: bool, **kwargs: Any) -> None:
        self.allow_loopback = allow_loopback
        super().__init__(**kwargs)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {
            "http": functools.partial(_Pool, allow_loopback=self.allow_loopback),
            "https": functools.partial(_SecurePool, allow_loopback=self.allow_loopback),
        }

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Called for a request and again for each redirect of it."""
        proxies = kwargs.get("proxies") or {}
        if proxies and select_proxy(request.url, proxies):
            kwargs["proxies"] = self._proxies(str(request.url), proxies)
        return super().send(request, *args, **kwargs)

    def _proxies(self, url: str, proxies: dict[str, str]) -> dict[str, str]:
        host = urlsplit(url).hostname or ""
        try:
            addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
        except socket.gaierror:  # only the proxy can resolve it
            return proxies
        for address in addresses:
            _vet(host, address, self.allow_loopback)
        return {} if any(ipaddress.ip_address(a.partition("%")[0]).is_loopback for a in addresses) else proxies


class _Connection(urllib3.connection.HTTPConnection):
    def __init__(self, *args: Any, allow_loopback: bool, **kwargs: Any) -> None:
        self.allow_loopback = allow_loopback
        super().__init__(*args, **kwargs)

    def _new_conn(self) -> socket.socket:
        def connect(info: Any, timeout: Any, source_address: Any) -> socket.socket:
            _vet(self.host, info[4][0], self.allow_loopback)
            return _socket_connect(info, timeout, source_address)

        try:
            return create_connection((self._dns_host, self.port), self.timeout, _create_socket_func=connect)
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(self, f"Connection to {self.host} timed out") from error
        except OSError as error:
            raise NewConnectionError(self, f"Failed to establish a new connection: {error}") from error


class _SecureConnection(_Connection, urllib3.connection.HTTPSConnection):
    pass


class _Pool(urllib3.connectionpool.HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(urllib3.connectionpool.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


def _vet(host: str, address: str, allow_loopback: bool) -> None:
    if why := refusal(address, allow_loopback=allow_loopback):
        raise RefusedAddress(f"{host} is {why}" if host.strip("[]") == address else f"{host} leads to {address}, {why}")
