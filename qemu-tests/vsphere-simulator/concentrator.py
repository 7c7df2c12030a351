"""A virtual serial port concentrator, as small as the tests of the simulator need one."""

import os
import socket
import threading

IAC, SB, SE = 255, 250, 240
WILL, DO = 251, 253
BINARY, VMWARE = 0, 232
KNOWN_1, KNOWN_2 = 0, 1
BEGIN, GOAHEAD, NOTNOW, PEER, PEER_OK, COMPLETE, ABORT = 40, 41, 43, 44, 45, 46, 48
DO_PROXY, WILL_PROXY, WONT_PROXY = 70, 71, 73
VC_UUID, GET_VC_UUID, NAME, GET_NAME, BIOS_UUID, GET_BIOS_UUID = 80, 81, 82, 83, 84, 85


class Connection(threading.Thread):
    """One connection: what it said of itself, what it sent."""

    def __init__(self, stream, owner):
        super().__init__(daemon=True)
        self.stream, self.owner = stream, owner
        self.said = {}
        self.data = bytearray()
        self.messages = []
        self.ended = False
        self.start()

    def send(self, data):
        self.stream.sendall(data)

    def command(self, number, content=b""):
        content = bytes(content).replace(b"\xff", b"\xff\xff")
        self.send(bytes([IAC, SB, VMWARE, number]) + content + bytes([IAC, SE]))

    def guest(self, data):
        """Bytes for the guest."""
        self.send(data.replace(b"\xff", b"\xff\xff"))

    def run(self):
        try:
            self.send(bytes([IAC, DO, VMWARE, IAC, WILL, BINARY, IAC, DO, BINARY]))
            self.read()
        except OSError:
            pass
        with self.owner.changed:
            self.ended = True
            self.owner.changed.notify_all()

    def read(self):
        stream = self.stream.makefile("rb")
        while byte := stream.read(1):
            if byte[0] != IAC:
                self.add(byte)
                continue
            verb = stream.read(1)[0]
            if verb == IAC:
                self.add(b"\xff")
            elif verb == SB:
                content = bytearray()
                while True:
                    byte = stream.read(1)
                    if byte[0] == IAC:
                        byte = stream.read(1)
                        if byte[0] == SE:
                            break
                    content += byte
                if content[0] == VMWARE:
                    self.take(content[1], bytes(content[2:]))
            elif 251 <= verb <= 254:
                stream.read(1)

    def add(self, data):
        with self.owner.changed:
            self.data += data
            self.owner.changed.notify_all()

    def take(self, number, content):
        self.messages.append(number)
        if number == KNOWN_1:
            self.command(KNOWN_2, bytes([DO_PROXY, BEGIN, PEER]))
        elif number == DO_PROXY:
            if self.owner.refuse:
                self.command(WONT_PROXY)
                return
            self.said["direction"], self.said["service"] = content[:1].decode(), content[1:].decode()
            self.command(WILL_PROXY)
            for question in (GET_VC_UUID, GET_NAME, GET_BIOS_UUID):
                self.command(question)
        elif number in (VC_UUID, BIOS_UUID):
            self.said["vc" if number == VC_UUID else "bios"] = content.decode().replace(" ", "").replace("-", "")
        elif number == BEGIN:
            self.said["cookie"] = content + b"\xff" + os.urandom(8)
            self.command(GOAHEAD, self.said["cookie"])
        elif number == PEER:
            source = next((c for c in self.owner.connections if c.said.get("cookie") == content), None)
            if source is None:
                self.stream.shutdown(socket.SHUT_RDWR)
                return
            self.said.update(source.said, peer=content)
            self.said.pop("cookie")
            self.command(PEER_OK, content)
        with self.owner.changed:
            if number == NAME:
                self.said["name"] = content.decode()
            if number in (COMPLETE, ABORT):
                self.said[number] = content
            self.owner.changed.notify_all()


class Concentrator:
    """Listens; keeps every connection there was."""

    def __init__(self):
        self.changed = threading.Condition()
        self.connections = []
        self.refuse = False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"telnet://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            stream, _ = self.listener.accept()
            connection = Connection(stream, self)
            with self.changed:
                self.connections.append(connection)
                self.changed.notify_all()

    def wait(self, what, seconds=60):
        """The first connection of which something holds, None if none in time."""
        with self.changed:
            self.changed.wait_for(lambda: any(what(c) for c in self.connections), seconds)
            return next((c for c in self.connections if what(c)), None)
