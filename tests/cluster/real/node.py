"""One real Kubernetes node: etcd, the control plane, containerd and the kubelet as processes.

Only inside `enter`, which gives them a network, mounts and process ids of their own. Every folder
that a program would take by default is named here, so nothing on the machine itself is touched.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import yaml
from dnslib.server import DNSServer

from tests.cluster.real.keys import write_service_account_key
from tests.cluster.real.names import DOMAIN, name_server

MARKER = Path("/run/mmar-jobs-node")
BIN = Path.home() / ".cache/mmar-jobs/cluster/bin"
NAME = "node"
ADDRESS = "10.222.0.1"
POD_RANGE = "10.223.0.0/16"
SERVICE_RANGE = "10.224.0.0/24"
API = f"https://{ADDRESS}:6443"
CGROUP = "/mmar-jobs-node"
# Name, groups: as a real cluster's certificates would say, so RBAC holds for its own parts too.
USERS = {
    "admin": ("admin", "system:masters"),
    "manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "proxy": ("system:kube-proxy", ""),
    "kubelet": (f"system:node:{NAME}", "system:nodes"),
}


@dataclass
class Node:
    """A running node; `folder` holds its state, logs and keys."""

    folder: Path
    name: str = NAME
    programs: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _names: DNSServer | None = None

    def start(self) -> None:
        """Return when the node is ready for pods, after about 15 s."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._write_access()
        self._start_etcd()
        self._start_api_server()
        self._start_containerd()
        self.wait("the API server", self._api_is_ready)
        self._start_controllers()
        self._start_kubelet()
        self.wait("the node", self._node_is_ready)
        self._names = name_server(ADDRESS, self.get)
        self._names.start_thread()

    def stop(self) -> None:
        """End the programs, last started first; containers end with the namespaces."""
        if self._names is not None:
            self._names.stop()
            self._names.server.server_close()
        for program in reversed(self.programs.values()):
            program.terminate()
            try:
                program.wait(10)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()
        self.programs.clear()

    def kubeconfig(
        self, user: str, *, token: str | None = None, namespace: str = "default"
    ) -> Path:
        """A client's configuration for one of USERS, or for any other by its token."""
        path = self.folder / f"{user}.kubeconfig"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "c", "cluster": {"server": API, "insecure-skip-tls-verify": True}}
            ],
            "users": [{"name": user, "user": {"token": token or token_of(user)}}],
            "contexts": [
                {"name": "c", "context": {"cluster": "c", "user": user, "namespace": namespace}}
            ],
            "current-context": "c",
        }
        path.write_text(yaml.safe_dump(content))
        return path

    def load_image(self, archive: Path) -> None:
        """Bring an OCI or Docker archive to the node."""
        self.ctr("images", "import", "--snapshotter", "overlayfs", str(archive))

    def ctr(self, *arguments: str) -> str:
        """Ask containerd in Kubernetes' namespace."""
        socket = self.folder / "containerd.sock"
        command = ["ctr", "--address", str(socket), "--namespace", "k8s.io", *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        assert 0 == done.returncode, done.stderr
        return done.stdout

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            program = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
                start_new_session=True,
            )
        self.programs[name] = program

    def wait(self, what: str, is_ready: Callable[[], bool], timeout_s: float = 90) -> None:
        """Return when something of the node is there; AssertionError where a program has ended."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            for name, program in self.programs.items():
                assert program.poll() is None, f"{name} ended: {self._last_words(name)}"
            with suppress(httpx2.HTTPError):
                if is_ready():
                    return
            time.sleep(0.2)
        raise AssertionError(f"{what} is not ready after {timeout_s:.0f} s; see {self.folder}")

    def _last_words(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]

    def ask(self, method: str, path: str, body: Any = None) -> httpx2.Response:
        """As the cluster's admin."""
        media_type = "application/json"
        if method == "PATCH":
            media_type = "application/merge-patch+json"
        return httpx2.request(
            method,
            f"{API}{path}",
            json=body,
            headers={"Authorization": f"Bearer {token_of('admin')}", "Content-Type": media_type},
            verify=False,
            timeout=30,
        )

    def get(self, path: str) -> httpx2.Response:
        """A GET as the cluster's admin."""
        return self.ask("GET", path)

    def _api_is_ready(self) -> bool:
        return self.get("/readyz").status_code == 200

    def _node_is_ready(self) -> bool:
        account = self.get("/api/v1/namespaces/default/serviceaccounts/default")
        node = self.get(f"/api/v1/nodes/{NAME}")
        if node.status_code != 200 or account.status_code != 200:
            return False
        conditions = node.json()["status"].get("conditions", [])
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def _write_access(self) -> None:
        rows = [f'{token_of(key)},{name},{key},"{group}"' for key, (name, group) in USERS.items()]
        (self.folder / "tokens.csv").write_text("\n".join(rows))
        write_service_account_key(self.folder / "accounts.key")
        for user in USERS:
            self.kubeconfig(user)

    def _start_etcd(self) -> None:
        self._start(
            "etcd",
            "etcd",
            f"--data-dir={self.folder}/etcd",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--unsafe-no-fsync",  # nothing in here outlives the test
        )

    def _start_api_server(self) -> None:
        self._start(
            "kube-apiserver",
            f"{BIN}/kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            f"--advertise-address={ADDRESS}",
            f"--cert-dir={self.folder}/certificates",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--token-auth-file={self.folder}/tokens.csv",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self.folder}/accounts.key",
            f"--service-account-signing-key-file={self.folder}/accounts.key",
            "--kubelet-preferred-address-types=InternalIP",
            "--allow-privileged=true",
        )

    def _start_containerd(self) -> None:
        runtime_spec = json.loads(
            subprocess.run(["ctr", "oci", "spec"], check=True, capture_output=True).stdout
        )
        # Containers inherit the machine's limits: raising them needs rights that it may not have.
        runtime_spec["process"].pop("rlimits", None)
        (self.folder / "runtime-spec.json").write_text(json.dumps(runtime_spec))
        networks = self.folder / "networks"
        networks.mkdir()
        (networks / "10-pods.conflist").write_text(json.dumps(_pod_network()))
        (self.folder / "containerd.toml").write_text(_containerd_config(self.folder))
        self._start("containerd", "containerd", f"--config={self.folder}/containerd.toml")
        socket = self.folder / "containerd.sock"
        self.wait("containerd", socket.exists)

    def _start_controllers(self) -> None:
        self._start(
            "kube-controller-manager",
            f"{BIN}/kube-controller-manager",
            f"--kubeconfig={self.folder}/manager.kubeconfig",
            f"--service-account-private-key-file={self.folder}/accounts.key",
            "--use-service-account-credentials",
            "--leader-elect=false",
            f"--cert-dir={self.folder}/manager-certificates",
        )
        self._start(
            "kube-scheduler",
            f"{BIN}/kube-scheduler",
            f"--kubeconfig={self.folder}/scheduler.kubeconfig",
            "--leader-elect=false",
            f"--cert-dir={self.folder}/scheduler-certificates",
        )
        (self.folder / "proxy.yaml").write_text(yaml.safe_dump(_proxy_config(self.folder)))
        self._start("kube-proxy", f"{BIN}/kube-proxy", f"--config={self.folder}/proxy.yaml")

    def _start_kubelet(self) -> None:
        (self.folder / "kubelet.yaml").write_text(yaml.safe_dump(_kubelet_config(self.folder)))
        self._start(
            "kubelet",
            f"{BIN}/kubelet",
            f"--config={self.folder}/kubelet.yaml",
            f"--kubeconfig={self.folder}/kubelet.kubeconfig",
            f"--root-dir={self.folder}/kubelet",
            f"--cert-dir={self.folder}/kubelet-certificates",
            f"--hostname-override={NAME}",
            f"--node-ip={ADDRESS}",
        )


def token_of(user: str) -> str:
    """Known to nobody outside: the API server listens inside the namespace only."""
    return f"token-of-{user}"


def _pod_network() -> dict[str, Any]:
    return {
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "pods0",
                "isGateway": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": POD_RANGE}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def _containerd_config(folder: Path) -> str:
    return f"""\
version = 2
root = "{folder}/containerd"
state = "/run/containerd"
oom_score = 0

[grpc]
address = "{folder}/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "mmar-jobs.test/base:1"
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
base_runtime_spec = "{folder}/runtime-spec.json"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{folder}/networks"
"""


def _kubelet_config(folder: Path) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": ADDRESS,
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},  # reachable from inside the namespace only
        "containerRuntimeEndpoint": f"unix://{folder}/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": CGROUP,
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "localStorageCapacityIsolation": False,
        "evictionHard": {"memory.available": "50Mi"},
        "imageGCHighThresholdPercent": 100,
        "podLogsDir": f"{folder}/pod-logs",
        "volumePluginDir": f"{folder}/volume-plugins",
        "resolvConf": "",
        "clusterDNS": [ADDRESS],
        "clusterDomain": DOMAIN,
        "syncFrequency": "10s",
        "serializeImagePulls": False,
        "registryPullQPS": 0,
    }


def _proxy_config(folder: Path) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": f"{folder}/proxy.kubeconfig"},
        "mode": "iptables",
        "clusterCIDR": POD_RANGE,
        "hostnameOverride": NAME,
        # The machine's own limit, not the namespace's: left alone.
        "conntrack": {"maxPerCore": 0},
    }
