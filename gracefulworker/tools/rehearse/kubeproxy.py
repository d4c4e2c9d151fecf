"""A Service as kube-proxy makes it: iptables rules on a node, and a namespace for each pod.

Linux and root. Each pod, the node and the clients have a network namespace of their own, with a
veth pair between each of them and the node; the rules are in the node's. They have the shape that
kube-proxy's iptables mode writes (pkg/proxy/iptables/proxier.go, Kubernetes 1.34): KUBE-SERVICES
leads to KUBE-SVC-*, which picks a KUBE-SEP-* with the statistic match, which has the DNAT; they are
replaced by one `iptables-restore --noflush`, and conntrack keeps what is established with its pod.

Nothing has a name and nothing outside is touched: a namespace lives as long as the process that
holds it (a "pause" process, as a pod's sandbox has one), and that ends when its standard input
does, at the latest when this process dies. With the namespace its links and rules are gone.

What may be changed here: the shape of the rules, when kube-proxy's changes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from gracefulworker.tools.rehearse.pods import Place, Pod
from gracefulworker.tools.rehearse.wire import Tls

CLUSTER_IP, PORT = "10.96.0.10", 80  #: of the Service
POD_PORT, PROBE_PORT = 8000, 8081
POD_NETWORK = "10.244.0.0/16"
CLIENT_IP, NODE_IP = "10.244.0.2", "10.244.0.1"

_NAME = "default/rehearsal:http"  # kube-proxy's way to write namespace, Service and port
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_PROGRAMS = ("ip", "iptables-restore", "unshare", "nsenter")

_PORTALS = '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'

#: What kube-proxy sets up once, whatever Services there are.
_FRAME = f"""\
*filter
:KUBE-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
-A INPUT -m conntrack --ctstate NEW {_PORTALS}
-A FORWARD -m conntrack --ctstate NEW {_PORTALS}
-A OUTPUT -m conntrack --ctstate NEW {_PORTALS}
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A PREROUTING {_PORTALS}
-A OUTPUT {_PORTALS}
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
COMMIT
"""


def check() -> None:
    """Whether this machine and this user can do it.

    :raises ValueError: with a sentence that says what is missing.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        raise ValueError("--service iptables needs Linux and root")
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        raise ValueError(f"--service iptables needs {', '.join(missing)} (iptables, util-linux)")


class NoNetwork(Exception):
    """This machine does not let the Service be made; the argument says what failed."""


class Namespace:
    """A network namespace, and the pause process that holds it."""

    def __init__(self) -> None:
        # It says a line when it is in its namespace, and then waits for the end of its input.
        self._pause = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # the terminal's Ctrl-C is not for it
        )
        self.enter = ("nsenter", f"--net=/proc/{self._pause.pid}/ns/net")

    @property
    def pid(self) -> int:
        return self._pause.pid

    async def begin(self) -> None:
        assert self._pause.stdout is not None, "it was asked for"
        if not await asyncio.to_thread(self._pause.stdout.readline):
            raise NoNetwork("unshare --net is not allowed here: root in a container, perhaps?")
        await self.run("ip", "link", "set", "lo", "up")

    async def run(self, *command: str, text: str = "") -> None:
        """Run a command in here, with `text` on its standard input.

        :raises NoNetwork: it failed.
        """
        process = await asyncio.create_subprocess_exec(
            *self.enter,
            *command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        said, _ = await process.communicate(text.encode())
        if process.returncode:
            raise NoNetwork(f"{' '.join(command)}: {said.decode(errors='replace')}")

    def end(self) -> None:
        """Let go of it: it is gone with the last process in it."""
        for pipe in (self._pause.stdin, self._pause.stdout):
            assert pipe is not None, "it was asked for"
            pipe.close()
        self._pause.wait()


class KubeProxy:
    """The Service. Entering it moves this thread into the namespace of the clients, for good."""

    address = (CLUSTER_IP, PORT)
    tls: Tls | None = None

    def __init__(self) -> None:
        self._endpoints: list[Pod] = []
        self._names: dict[str, str] = {}  # a pod's address -> its name
        self._stale: list[str] = []  # chains of former endpoints
        self._spaces: list[Namespace] = []

    async def __aenter__(self) -> KubeProxy:
        with contextlib.ExitStack() as stack:
            stack.callback(self._end)
            self._node = await self._namespace()
            await self._node.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
            await self._node.run("iptables-restore", "--noflush", text=_FRAME)
            await self._sync()
            _unshare_network()
            await self._connect(os.getpid(), "clients", CLIENT_IP, ())
            if not self._conntrack().exists():
                raise NoNetwork("this kernel does not show its connections (nf_conntrack)")
            stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        for space in self._spaces:
            space.end()

    async def _namespace(self) -> Namespace:
        space = Namespace()
        self._spaces.append(space)
        await space.begin()
        return space

    async def place(self, number: int) -> Place:
        """A namespace for one more pod."""
        space = await self._namespace()
        ip = f"10.244.0.{10 + number}"
        self._names[ip] = f"pod {number}"
        await self._connect(space.pid, f"pod{number}", ip, space.enter)
        return Place(
            (ip, POD_PORT),
            f"0.0.0.0:{POD_PORT}",
            space.enter,
            probes=(ip, PROBE_PORT),
            probe_bind=f"0.0.0.0:{PROBE_PORT}",
        )

    async def _connect(self, pid: int, link: str, ip: str, enter: tuple[str, ...]) -> None:
        """A veth pair between the node and the namespace of `pid`, with a route each way."""
        inside = "; ".join(
            (
                "set -e",
                "ip link set lo up",
                "ip link set eth0 up",
                f"ip addr add {ip}/32 dev eth0",
                f"ip route add {NODE_IP} dev eth0 scope link",
                f"ip route add default via {NODE_IP}",
            )
        )
        node = "; ".join(
            (
                "set -e",
                f"ip link add {link} type veth peer name eth0 netns {pid}",
                f"ip addr add {NODE_IP}/32 dev {link}",
                f"ip link set {link} up",
            )
        )
        await self._node.run("sh", "-c", node)
        await _run(*enter, "sh", "-c", inside)
        await self._node.run("ip", "route", "add", f"{ip}/32", "dev", link)

    async def add(self, pod: Pod) -> None:
        self._endpoints.append(pod)
        await self._sync()

    async def remove(self, pod: Pod) -> None:
        self._endpoints.remove(pod)
        self._stale.append(_chain("SEP", _NAME + "tcp" + _endpoint(pod)))
        await self._sync()

    def refused(self, port: int) -> bool:
        return False  # the kernel refuses what is refused

    def pods_by_port(self) -> dict[int, str]:
        """From the node's conntrack table, where a refused connection leaves no entry.

        Probes go to a pod itself, from ports that may be those of the Service's clients later.
        """
        found = {}
        for line in self._conntrack().read_text().splitlines():
            words = [word.partition("=") for word in line.split()]
            ports = [value for name, _, value in words if name == "sport"]
            sources = [value for name, _, value in words if name == "src"]
            to = [value for name, _, value in words if name == "dst"]
            if len(sources) == 2 and to[0] == CLUSTER_IP and sources[1] in self._names:
                found[int(ports[0])] = self._names[sources[1]]
        return found

    def _conntrack(self) -> Path:
        return Path(f"/proc/{self._node.pid}/net/nf_conntrack")

    async def _sync(self) -> None:
        """Replace the Service's rules at once, as syncProxyRules does."""
        rules = _rules([_endpoint(pod) for pod in self._endpoints], self._stale)
        await self._node.run("iptables-restore", "--noflush", "--counters", text=rules)
        self._stale.clear()


def _rules(endpoints: list[str], stale: list[str]) -> str:
    """What iptables-restore is given; a chain that is named at the top is emptied first."""
    service = _chain("SVC", _NAME + "tcp")
    chains = {endpoint: _chain("SEP", _NAME + "tcp" + endpoint) for endpoint in endpoints}
    portal = f'-d {CLUSTER_IP}/32 -p tcp -m comment --comment "{_NAME}{{}}" -m tcp --dport {PORT}'
    reject, nat = [], []
    if endpoints:
        nat += [
            f"-A KUBE-SERVICES {portal.format(' cluster IP')} -j {service}",
            f"-A {service} ! -s {POD_NETWORK} {portal.format(' cluster IP')} -j KUBE-MARK-MASQ",
        ]
    else:
        reject = [
            f"-A KUBE-SERVICES {portal.format(' has no endpoints')}"
            " -j REJECT --reject-with icmp-port-unreachable"
        ]
    for number, (endpoint, chain) in enumerate(chains.items()):
        left = len(chains) - number
        chance = f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""
        nat += [
            f'-A {service} -m comment --comment "{_NAME} -> {endpoint}" {chance}-j {chain}',
            f'-A {chain} -s {endpoint.partition(":")[0]}/32 -m comment --comment "{_NAME}"'
            " -j KUBE-MARK-MASQ",
            f'-A {chain} -p tcp -m comment --comment "{_NAME}" -m tcp -j DNAT'
            f" --to-destination {endpoint}",
        ]
    named = [f":{chain} - [0:0]" for chain in ["KUBE-SERVICES", service, *chains.values(), *stale]]
    lines = ["*filter", ":KUBE-SERVICES - [0:0]", *reject, "COMMIT", "*nat", *named, *nat]
    return "\n".join([*lines, *(f"-X {chain}" for chain in stale), "COMMIT", ""])


def _chain(kind: str, name: str) -> str:
    """kube-proxy's name for a chain: a hash, as iptables allows 28 characters."""
    digest = base64.b32encode(hashlib.sha256(name.encode()).digest()).decode()
    return f"KUBE-{kind}-{digest[:16]}"


def _endpoint(pod: Pod) -> str:
    return f"{pod.place.address[0]}:{pod.place.address[1]}"


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    if await process.wait():
        raise NoNetwork(f"{' '.join(command)} failed")


def _unshare_network() -> None:
    """Put this thread, what it starts and the sockets that it makes into a new namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
