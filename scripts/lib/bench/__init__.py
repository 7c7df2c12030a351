"""Every figure of this project beside its baseline, measured in the same run.

    __main__    the command line
    figures     what a figure is, its ratio, spread and verdict
    report      the table and the JSON
    artifacts   what is measured, built or found: kernels, boot images, baselines
    guest       a trivial guest in QEMU: when it starts, when it speaks, how many instructions that took
    parts       the figures themselves, one file a subject
"""
