"""Command lines of tests, from dicts of options."""


def flags(options):
    """--name value ... of a dict."""
    return [str(x) for name, value in options.items() for x in (f"--{name}", value)]


def general_distillation(workspace, output_dir, **options):
    """The arguments of general_distill on the workspace's corpus, teacher and student."""
    inputs = {
        "train_file_path": workspace / "corpus.txt",
        "teacher_model": workspace / "teacher",
        "student_model": workspace / "student.json",
        "output_dir": output_dir,
    }
    return flags(inputs | options)
