"""Who vouches for the servers of the tests?"""

import ssl
import subprocess
from pathlib import Path


class Authority:
    """Issues certificates for 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificate = folder / "ca.pem"
        self._openssl(
            *"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=Tests".split(),
            *("-keyout", folder / "ca.key", "-out", self.certificate),
        )

    def issue(self, name: str) -> tuple[Path, Path]:
        """Certificate and key of a server, for node.example and this machine's address."""
        files = [self.folder / f"{name}.{end}" for end in ("pem", "key", "csr", "ext")]
        certificate, key, request, extensions = files
        extensions.write_text("subjectAltName=DNS:node.example,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n")
        self._openssl(
            *"req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes".split(),
            *("-subj", f"/CN={name}", "-keyout", key, "-out", request),
        )
        self._openssl(
            *("x509", "-req", "-in", request, "-days", "1", "-CA", self.certificate, "-CAkey", self.folder / "ca.key"),
            *("-CAcreateserial", "-extfile", extensions, "-out", certificate),
        )
        return certificate, key

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificate))

    def _openssl(self, *arguments: str | Path) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
