/* The least that can be PID 1: says one byte on the console, then sleeps for good; or powers the
 * machine off when its first argument (after `--` on the kernel's command line) is `off`.
 */
#include <string.h>
#include <sys/reboot.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (write(STDOUT_FILENO, "!", 1) != 1)
        return 1;
    if (argc > 1 && strcmp(argv[1], "off") == 0)
        reboot(RB_POWER_OFF);
    for (;;)
        pause();
}
