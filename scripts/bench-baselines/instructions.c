/* A QEMU TCG plugin that counts the guest's instructions into a file which the benchmark maps.
 *
 *     -plugin instructions.so,into=PATH
 *
 * The file's first eight bytes are the count so far, in the host's byte order. What a guest waits for
 * (an interrupt, the host) is not in it: a halted processor executes nothing.
 *
 * QEMU's header for plugins is in no package of Debian's; declared here is what is used of version 1 of
 * the interface (QEMU 4.2 to 8.2), as the manual's "QEMU TCG Plugins" describes it.
 */
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t plugin_id;
struct block;
enum operation { ADD_U64 };
struct information; /* QEMU's description of itself, unused */

extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct block *));
extern size_t qemu_plugin_tb_n_insns(const struct block *);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct block *, enum operation, void *, uint64_t);

EXPORT int qemu_plugin_version = 1;

static uint64_t *count;

static void translated(plugin_id id, struct block *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, count, qemu_plugin_tb_n_insns(block));
}

EXPORT int qemu_plugin_install(plugin_id id, const struct information *qemu, int argc, char **argv)
{
    (void)qemu;
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], "into=", 5) != 0)
            continue;
        int file = open(argv[i] + 5, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (file < 0 || ftruncate(file, sizeof *count) < 0) {
            perror(argv[i] + 5);
            return 1;
        }
        count = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        close(file);
        if (count == MAP_FAILED) {
            perror("mmap");
            return 1;
        }
        *count = 0;
        qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
        return 0;
    }
    fprintf(stderr, "instructions: needs into=PATH\n");
    return 1;
}
