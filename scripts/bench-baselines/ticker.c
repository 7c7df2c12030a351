/* A process that owns MIB MiB of memory no two pages of which are alike, and ticks:
 *
 *     ticker MIB PORT    whoever connects to the TCP port is sent a byte a millisecond
 *     ticker MIB         says one byte on the console and sleeps for good; also as PID 1
 */
#include <netinet/in.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int fill(size_t bytes)
{
    uint64_t number = 88172645463325252ULL;
    uint64_t *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        return 0;
    /* Marsaglia's xorshift64. */
    for (size_t i = 0; i < bytes / sizeof *memory; i++) {
        number ^= number << 13;
        number ^= number >> 7;
        number ^= number << 17;
        memory[i] = number;
    }
    return 1;
}

static void tick(int stream)
{
    struct timespec pause = { .tv_nsec = 1000000 };

    while (write(stream, ".", 1) == 1)
        nanosleep(&pause, NULL);
    close(stream);
}

int main(int argc, char **argv)
{
    struct sockaddr_in here = { .sin_family = AF_INET };
    size_t bytes = argc > 1 ? strtoul(argv[1], NULL, 10) << 20 : 0;
    int listener;

    if (bytes > 0 && !fill(bytes))
        return 1;
    if (argc < 3) {
        if (write(STDOUT_FILENO, "!", 1) != 1)
            return 1;
        for (;;)
            pause();
    }
    signal(SIGPIPE, SIG_IGN);
    here.sin_port = htons((uint16_t)atoi(argv[2]));
    listener = socket(AF_INET, SOCK_STREAM, 0);
    if (listener < 0 || bind(listener, (void *)&here, sizeof here) < 0 || listen(listener, 1) < 0)
        return 1;
    for (;;) {
        int stream = accept(listener, NULL, NULL);

        if (stream >= 0)
            tick(stream);
    }
}
