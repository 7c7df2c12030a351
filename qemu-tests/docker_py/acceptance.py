"""docker-py against an endpoint: DOCKER_HOST says which, the one argument is an image archive.

Ends with the line `done`; anything else is a failure.
"""

import io
import sys
import tarfile
import threading

import docker

IMAGE = "sample/busybox"


def check(found, wanted, what):
    if found != wanted:
        sys.exit(f"{what}: {found!r} instead of {wanted!r}")
    print("ok", what)


def raises(kind, status, words, what, call):
    try:
        call()
    except kind as error:
        check(error.response.status_code, status, what + ": status")
        check(words in str(error), True, what + f": {words!r} in {str(error)!r}")
    else:
        sys.exit(f"{what}: was not refused")


def run(client):
    check(client.containers.run(IMAGE, ["echo", "hello"], remove=True), b"hello\n", "run")
    try:
        client.containers.run(IMAGE, ["sh", "-c", "echo why >&2; exit 3"], remove=True)
    except docker.errors.ContainerError as error:
        check((error.exit_status, error.stderr), (3, b"why\n"), "a run that fails")
    else:
        sys.exit("a run that fails: did not")
    streamed = client.containers.run(IMAGE, ["seq", "3"], stream=True, remove=True)
    check(b"".join(streamed), b"1\n2\n3\n", "run, streamed")


def execs(container):
    code, output = container.exec_run(["sh", "-c", "echo out; echo err >&2; exit 4"], demux=True)
    check((code, output), (4, (b"out\n", b"err\n")), "exec, two streams")
    code, output = container.exec_run("id -u", user="nobody")
    check((code, output), (0, b"65534\n"), "exec as nobody")
    code, output = container.exec_run("pwd", workdir="/tmp", environment={"A": "b"})
    check((code, output), (0, b"/tmp\n"), "exec elsewhere")
    _, stream = container.exec_run(["seq", "1", "2000"], stream=True)
    check(b"".join(stream).count(b"\n"), 2000, "exec, streamed")


def archives(container):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        info = tarfile.TarInfo("put/file")
        info.size, info.mode = 5, 0o640
        tar.addfile(info, io.BytesIO(b"bytes"))
    check(container.put_archive("/tmp", data.getvalue()), True, "put_archive")
    check(container.exec_run("cat /tmp/put/file")[1], b"bytes", "what was put")
    chunks, stat = container.get_archive("/tmp/put/file")
    check((stat["name"], stat["size"], stat["mode"] & 0o777), ("file", 5, 0o640), "get_archive: stat")
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        check(tar.extractfile("file").read(), b"bytes", "get_archive: bytes")
    raises(docker.errors.NotFound, 404, "/no/such", "get_archive of nothing",
           lambda: container.get_archive("/no/such"))


def attach(client):
    container = client.containers.create(
        IMAGE, ["sh", "-c", "while read a; do echo got $a; done; echo over >&2; exit 5"],
        stdin_open=True)
    socket = container.attach_socket(params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
    container.start()
    raw = getattr(socket, "_sock", socket)
    raw.sendall(b"one\ntwo\n")
    raw.shutdown(1)
    received = b""
    while piece := raw.recv(4096):
        received += piece
    frames = []
    while received:
        size = int.from_bytes(received[4:8], "big")
        frames.append((received[0], received[8:8 + size]))
        received = received[8 + size:]
    output = b"".join(data for stream, data in frames if stream == 1)
    errors = b"".join(data for stream, data in frames if stream == 2)
    check((output, errors), (b"got one\ngot two\n", b"over\n"), "attach_socket, half-closed")
    check(container.wait()["StatusCode"], 5, "wait")
    check(container.logs(stdout=True, stderr=False), b"got one\ngot two\n", "logs of stdout")
    check(container.logs(tail=1, stdout=False), b"over\n", "logs of stderr, tail")
    container.remove()


def logs(client):
    container = client.containers.run(
        IMAGE, ["sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.1; done"], detach=True)
    check(list(container.logs(stream=True, follow=True)) and container.logs(), b"1\n2\n3\n", "logs followed")
    stamped = container.logs(timestamps=True).decode().splitlines()
    check([line.split(" ")[1] for line in stamped], ["1", "2", "3"], "logs with timestamps")
    container.remove()


def events(client):
    seen, stream = [], client.events(decode=True, filters={"type": "container", "container": "told"})

    def listen():
        for event in stream:
            seen.append(event["Action"])
            if event["Action"] == "destroy":
                return

    listener = threading.Thread(target=listen)
    listener.start()
    client.containers.run(IMAGE, "true", name="told", remove=True)
    listener.join(120)
    stream.close()
    expected = ["create", "attach", "start", "die", "destroy"]
    check([action for action in seen if action in expected and action != "attach"],
          [action for action in expected if action != "attach"], "events")


def states(client):
    container = client.containers.run(
        IMAGE, ["sleep", "100000"], detach=True, name="main", labels={"a": "b"},
        environment=["X=1"], mem_limit="160m", stop_signal="KILL")
    check(container.status, "created", "status before a reload")
    container.reload()
    check((container.status, container.labels), ("running", {"a": "b"}), "status and labels")
    execs(container)
    archives(container)
    stats = container.stats(stream=False)
    check(0 < stats["memory_stats"]["usage"] < stats["memory_stats"]["limit"], True, "stats")
    stream = container.stats(stream=True, decode=True)
    first, second = next(stream), next(stream)
    check(first["read"] < second["read"], True, "stats, streamed")
    check(any("sleep 100000" in row for row in container.top()["Processes"][0]), True, "top")
    raises(docker.errors.APIError, 409, "is already in use by container", "the name again",
           lambda: client.containers.create(IMAGE, "true", name="main"))
    raises(docker.errors.APIError, 409, "container is running", "remove while it runs", container.remove)
    container.pause()
    container.reload()
    check(container.status, "paused", "paused")
    raises(docker.errors.APIError, 409, "is paused", "exec in a paused one",
           lambda: container.exec_run("true"))
    container.unpause()
    container.rename("renamed")
    check([c.name for c in client.containers.list(filters={"label": "a=b"})], ["renamed"], "list")
    container.stop(timeout=1)
    check(container.wait()["StatusCode"], 137, "wait after stop")
    changes = {(change["Kind"], change["Path"]) for change in container.diff()}
    check((1, "/tmp/put") in changes, True, "diff")
    image = container.commit(repository="made/py", tag="one")
    check(client.containers.run("made/py:one", ["cat", "/tmp/put/file"], remove=True), b"bytes", "commit")
    client.images.remove("made/py:one")
    check(image.id.startswith("sha256:"), True, "the image committed")
    container.remove()


def images(client, archive):
    image = client.images.get(IMAGE)
    check(image.tag("other/name", tag="v1"), True, "tag")
    check("other/name:v1" in client.images.get(image.id).tags, True, "tags")
    with open(archive, "rb") as file:
        loaded = client.images.load(file)
    check([one.id for one in loaded], [image.id], "load")
    check(len(client.images.list(name="other/name")), 1, "images by name")
    client.images.remove("other/name:v1")
    raises(docker.errors.ImageNotFound, 404, "No such image", "an image that is not there",
           lambda: client.images.get("no/such:image"))


def system(client):
    check(client.ping(), True, "ping")
    check(client.version()["Os"], "linux", "version")
    info = client.info()
    check(info["MemTotal"] > 0 and info["NCPU"] > 0, True, "info")
    raises(docker.errors.NotFound, 404, "No such container: nobody", "a container that is not there",
           lambda: client.containers.get("nobody"))
    check(client.df()["Containers"], [], "df")


def main():
    client = docker.from_env(timeout=120)
    run(client)
    attach(client)
    logs(client)
    events(client)
    states(client)
    images(client, sys.argv[1])
    system(client)
    check(client.containers.list(all=True), [], "nothing is left")
    print("done")


main()
