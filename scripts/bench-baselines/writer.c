/* Writes so many MiB of zeros to standard output, 64 KiB at once: `writer 100`. */
#include <stdlib.h>
#include <unistd.h>

static char block[64 << 10];

int main(int argc, char **argv)
{
    size_t left = argc > 1 ? strtoul(argv[1], NULL, 10) << 20 : 0;

    while (left > 0) {
        ssize_t wrote = write(STDOUT_FILENO, block, left < sizeof block ? left : sizeof block);

        if (wrote < 0)
            return 1;
        left -= (size_t)wrote;
    }
    return 0;
}
