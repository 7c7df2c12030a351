"""The simulator as a child of a test, and what the tests of it share."""

import contextlib
import hashlib
import http.client
import json
import os
import ssl
import subprocess
import sys
import tempfile
import urllib.request

from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim

USER, PASSWORD = "administrator@vsphere.local", "right"


class Simulator:
    """A running simulator: its datastore's directory, its addresses, its counters."""

    def __init__(self, program, *arguments, kind="vpx"):
        self.directory = tempfile.TemporaryDirectory(prefix="vsphere-simulator.")
        self.datastore = os.path.join(self.directory.name, "datastore")
        password = os.path.join(self.directory.name, "password")
        with open(password, "w", encoding="ascii") as file:
            file.write(PASSWORD + "\n")
        self.log = open(os.path.join(self.directory.name, "log"), "w+", encoding="utf-8")
        self.process = subprocess.Popen(
            [program, "--kind", kind, "--user", USER, "--password-file", password,
             "--datastore", self.datastore, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"the simulator did not start: {self.tail()}")
        self.ready = json.loads(line)
        self.host, port = self.ready["url"].split("/")[2].split(":")
        self.port = int(port)

    def tail(self):
        self.log.flush()
        self.log.seek(0)
        return self.log.read()[-4000:]

    def connect(self, user=USER, password=PASSWORD):
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return SmartConnect(host=self.host, port=self.port, user=user, pwd=password, sslContext=context)

    @contextlib.contextmanager
    def session(self):
        instance = self.connect()
        try:
            yield instance
        finally:
            with contextlib.suppress(Exception):
                Disconnect(instance)

    def certificate(self):
        return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((self.host, self.port)))

    def thumbprint(self):
        digest = hashlib.sha256(self.certificate()).hexdigest().upper()
        return ":".join(digest[i:i + 2] for i in range(0, len(digest), 2))

    def request(self, method, path, body=None, headers=None):
        """One request over TLS: its status and body."""
        connection = http.client.HTTPSConnection(
            self.host, self.port, context=ssl._create_unverified_context(), timeout=60)  # noqa: SLF001
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()

    def control(self, method, path, body=None):
        """Asks the control endpoint; JSON in, JSON out."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.ready["control"] + path, data=data, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def end(self):
        """Closes standard input and waits: the exit status."""
        self.process.stdin.close()
        status = self.process.wait(timeout=60)
        self.process.stdout.close()
        return status

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.process.poll() is None:
            self.end()
        if kind is not None:
            print("--- the simulator's log ends with", self.tail(), file=sys.stderr)
        self.log.close()
        self.directory.cleanup()


class Checks:
    """Counts what held and what did not."""

    def __init__(self):
        self.passed, self.failed = 0, 0

    def equal(self, found, wanted, what):
        if found == wanted:
            self.passed += 1
            print("ok", what)
        else:
            self.failed += 1
            print(f"FAILED {what}: {found!r} instead of {wanted!r}")

    def true(self, found, what):
        self.equal(bool(found), True, what)

    def raises(self, kind, what, call):
        """The fault a call ends with, if it is of this kind."""
        try:
            found = call()
        except kind as fault:
            self.passed += 1
            print("ok", what)
            return fault
        except Exception as other:  # whatever else it is, it is not what was wanted
            self.failed += 1
            print(f"FAILED {what}: {type(other).__name__}: {other}")
            return None
        self.failed += 1
        print(f"FAILED {what}: was not refused, gave {found!r}")
        return None

    def end(self):
        print(f"{self.passed} passed, {self.failed} failed")
        sys.exit(1 if self.failed or not self.passed else 0)


def find(instance, kind, name=None):
    """The first object of a kind (and name)."""
    content = instance.RetrieveContent()
    view = content.viewManager.CreateContainerView(content.rootFolder, [kind], True)
    try:
        for item in view.view:
            if name is None or item.name == name:
                return item
    finally:
        view.Destroy()
    raise LookupError(f"no {kind.__name__} {name or ''}")


def machine_spec(name, devices=(), memory=256, **more):
    """The specification of a virtual machine on the datastore."""
    return vim.vm.ConfigSpec(
        name=name, memoryMB=memory, numCPUs=1, guestId="otherLinux64Guest",
        files=vim.vm.FileInfo(vmPathName="[LocalDS_0]"),
        deviceChange=[vim.vm.device.VirtualDeviceSpec(operation="add", device=device, fileOperation=operation)
                      for device, operation in devices],
        **more)
