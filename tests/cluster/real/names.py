"""Names of Services for pods, from what the API server says of them: CoreDNS in small.

Not here: names outside the cluster, which no pod of a test may reach.
"""

from collections.abc import Callable
from typing import Any

import httpx2
from dnslib import QTYPE, RCODE, RR, A, DNSRecord
from dnslib.server import BaseResolver, DNSLogger, DNSServer

DOMAIN = "cluster.local"
_SUFFIX = ["svc", *DOMAIN.split(".")]


class ServiceNames(BaseResolver):
    """The addresses of `<service>.<namespace>.svc.cluster.local`: ready pods, or the Service's."""

    def __init__(self, get: Callable[[str], httpx2.Response]) -> None:
        self._get = get

    def resolve(self, request: DNSRecord, handler: Any) -> DNSRecord:
        """The answer to one question; names of other kinds do not exist."""
        reply = request.reply()
        labels = request.q.qname.idna().rstrip(".").split(".")
        addresses = self._addresses(*labels[:2]) if labels[2:] == _SUFFIX else []
        if not addresses:
            reply.header.rcode = RCODE.NXDOMAIN
        elif request.q.qtype == QTYPE.A:
            for address in addresses:
                reply.add_answer(RR(request.q.qname, QTYPE.A, rdata=A(address), ttl=0))
        return reply

    def _addresses(self, service: str, namespace: str) -> list[str]:
        found = self._get(f"/api/v1/namespaces/{namespace}/services/{service}")
        if not found.is_success:
            return []
        address = found.json()["spec"]["clusterIP"]
        if address != "None":
            return [address]
        path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        selector = f"labelSelector=kubernetes.io/service-name={service}"
        slices = self._get(f"{path}?{selector}").json()["items"]
        endpoints = [each for item in slices for each in item.get("endpoints") or []]
        return [
            address
            for endpoint in endpoints
            if endpoint["conditions"].get("ready")
            for address in endpoint["addresses"]
        ]


def name_server(address: str, get: Callable[[str], httpx2.Response]) -> DNSServer:
    """A server on UDP, not yet started."""
    quiet = DNSLogger("-request,-reply,-truncated,-error")
    return DNSServer(ServiceNames(get), address=address, port=53, logger=quiet)
