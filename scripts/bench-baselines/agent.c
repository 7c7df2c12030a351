/* What an agent costs that does nothing but the work: PID 1 of a machine, on the same carrier as
 * tether, without protocol, streams, namespaces or supervision. A command is one byte:
 *
 *     h              answers `h`; on a serial line it says so once by itself
 *     t              runs /bin/true of the disk `root` and answers its status as a byte
 *     w LENGTH       (a digit string and a newline) writes LENGTH MiB of zeros
 *     r LENGTH       the same, written by a child into a pipe and copied from there
 *     m              answers /proc/self/status, a zero byte at its end
 *
 * The carrier is the one that `tether.channel=` names on the kernel's command line.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

/* <linux/vm_sockets.h>, which musl's compiler does not find. */
#define ANY_CID (-1U)
struct sockaddr_vm {
    sa_family_t family;
    unsigned short reserved;
    unsigned port, cid;
    unsigned char zero[sizeof(struct sockaddr) - sizeof(sa_family_t) - sizeof(unsigned short) - 2 * sizeof(unsigned)];
};

static char block[64 << 10];

static void fail(const char *what)
{
    perror(what);
    sleep(1);
    _exit(1);
}

/* Reads a small file into `block`; 0 when there is none. */
static size_t slurp(const char *path)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    size_t length = 0;
    ssize_t got;

    if (file < 0)
        return 0;
    while (length < sizeof block - 1 && (got = read(file, block + length, sizeof block - 1 - length)) > 0)
        length += (size_t)got;
    close(file);
    block[length] = 0;
    return length;
}

/* Waits for a device: the drivers find them beside us. */
static int open_device(const char *path)
{
    for (;;) {
        int file = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);

        if (file >= 0)
            return file;
        if (errno != ENOENT && errno != ENXIO && errno != EBUSY)
            fail(path);
        usleep(500);
    }
}

/* The machine has one virtio-serial port; what it is called depends on its other virtio devices. */
static int open_port(void)
{
    for (;;) {
        DIR *ports = opendir("/sys/class/virtio-ports");
        struct dirent *port;

        while (ports != NULL && (port = readdir(ports)) != NULL) {
            char path[300];

            if (port->d_name[0] == '.')
                continue;
            snprintf(path, sizeof path, "/dev/%s", port->d_name);
            closedir(ports);
            return open_device(path);
        }
        if (ports != NULL)
            closedir(ports);
        usleep(500);
    }
}

static int open_serial(const char *name)
{
    char path[64];
    struct termios line;

    snprintf(path, sizeof path, "/dev/%s", name);
    int tty = open_device(path);
    if (tcgetattr(tty, &line) < 0)
        fail("tcgetattr");
    cfmakeraw(&line);
    cfsetspeed(&line, B115200);
    line.c_cflag |= CLOCAL;
    if (tcsetattr(tty, TCSANOW, &line) < 0)
        fail("tcsetattr");
    /* What was sent to a line nobody had opened is lost: here the first `h` is unasked. */
    if (write(tty, "h", 1) != 1)
        fail("write");
    return tty;
}

static int open_vsock(unsigned port)
{
    struct sockaddr_vm here = { .family = AF_VSOCK, .port = port, .cid = ANY_CID };
    int listener = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (listener < 0 || bind(listener, (void *)&here, sizeof here) < 0 || listen(listener, 1) < 0)
        fail("vsock");
    int stream = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (stream < 0)
        fail("accept");
    return stream;
}

static int open_channel(void)
{
    char channel[64];

    if (slurp("/proc/cmdline") == 0)
        fail("/proc/cmdline");
    char *word = strstr(block, "tether.channel=");
    if (word == NULL || sscanf(word, "tether.channel=%63s", channel) != 1)
        fail("tether.channel=");
    if (strncmp(channel, "serial:", 7) == 0)
        return open_serial(channel + 7);
    if (strncmp(channel, "vsock:", 6) == 0)
        return open_vsock((unsigned)strtoul(channel + 6, NULL, 10));
    return open_port();
}

/* Mounts the disk with the serial `root`. */
static void mount_root(void)
{
    for (;;) {
        DIR *disks = opendir("/sys/block");
        struct dirent *disk;

        if (disks == NULL)
            fail("/sys/block");
        while ((disk = readdir(disks)) != NULL) {
            char path[512];

            snprintf(path, sizeof path, "/sys/block/%s/serial", disk->d_name);
            if (slurp(path) == 0 || strncmp(block, "root", 4) != 0)
                continue;
            snprintf(path, sizeof path, "/dev/%s", disk->d_name);
            mkdir("/root", 0755);
            if (mount(path, "/root", "ext4", 0, NULL) < 0)
                fail("mount");
            closedir(disks);
            memset(block, 0, sizeof block);
            return;
        }
        closedir(disks);
        usleep(500);
    }
}

static unsigned char run_true(void)
{
    static int mounted;
    int status;

    if (!mounted) {
        mount_root();
        mounted = 1;
    }
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (child == 0) {
        char *argv[] = { "/bin/true", NULL }, *env[] = { NULL };

        if (chroot("/root") < 0 || chdir("/") < 0)
            _exit(126);
        execve(argv[0], argv, env);
        _exit(127);
    }
    if (waitpid(child, &status, 0) < 0)
        fail("waitpid");
    return WIFEXITED(status) ? (unsigned char)WEXITSTATUS(status) : 255;
}

static void write_all(int file, const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t wrote = write(file, bytes, length);

        if (wrote < 0)
            fail("write");
        bytes += wrote;
        length -= (size_t)wrote;
    }
}

/* The number that follows a `w`, up to its newline. */
static size_t read_number(int channel)
{
    size_t number = 0;
    char digit;

    while (read(channel, &digit, 1) == 1 && digit != '\n')
        number = number * 10 + (size_t)(digit - '0');
    return number;
}

static void write_zeros(int file, size_t mib)
{
    memset(block, 0, sizeof block);
    for (size_t left = mib << 20; left > 0; left -= sizeof block)
        write_all(file, block, sizeof block);
}

static void relay_zeros(int channel, size_t mib)
{
    int ends[2];
    ssize_t got;

    if (pipe(ends) < 0)
        fail("pipe");
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (child == 0) {
        write_zeros(ends[1], mib);
        _exit(0);
    }
    close(ends[1]);
    while ((got = read(ends[0], block, sizeof block)) > 0)
        write_all(channel, block, (size_t)got);
    close(ends[0]);
    waitpid(child, NULL, 0);
}

static void answer(int channel, char command)
{
    switch (command) {
    case 'h':
        write_all(channel, "h", 1);
        break;
    case 't': {
        char status = (char)run_true();

        write_all(channel, &status, 1);
        break;
    }
    case 'w':
        write_zeros(channel, read_number(channel));
        break;
    case 'r':
        relay_zeros(channel, read_number(channel));
        break;
    case 'm': {
        size_t length = slurp("/proc/self/status");

        write_all(channel, block, length + 1);
        break;
    }
    }
}

int main(void)
{
    mkdir("/dev", 0755);
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    if (mount("dev", "/dev", "devtmpfs", 0, NULL) < 0 && errno != EBUSY)
        fail("/dev");
    if (mount("proc", "/proc", "proc", 0, NULL) < 0)
        fail("/proc");
    if (mount("sys", "/sys", "sysfs", 0, NULL) < 0)
        fail("/sys");

    int channel = open_channel();
    char command;

    /* A template's QEMU is frozen when it has read this. */
    if (access("/sys/firmware/qemu_fw_cfg/by_name/opt/tether/identity", F_OK) == 0)
        dprintf(2, "tether: template ready\n");
    for (;;) {
        ssize_t got = read(channel, &command, 1);

        if (got == 1)
            answer(channel, command);
        else
            usleep(500); /* a port whose host end is not there reads as its end */
    }
}
