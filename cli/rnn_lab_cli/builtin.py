"""The commands that rnn-lab brings itself, through the same hook as everybody else's."""

from typing import Any

from rnn_lab.hookspecs import hookimpl

COMMANDS = {
    "list-models": ("list_models:list_models", "Every model: name, family, equation, parent, aliases."),
    "show": ("show:show", "One model: mathematics, fields, state, sizes, kernels usable here."),
    "presets": ("presets:presets", "Named configurations: the seeds' published rows, counted again."),
    "size": ("size:size", "Shape of a model at a parameter target, with its certificate."),
    "memory": ("memory:memory", "Bytes of weights, gradients and optimizer state, per optimizer, before training."),
    "fit": ("fit:fit", "Train a model."),
    "search": ("search:search", "Search shapes and optimizer settings, every trial on the parameter target."),
    "search-curve": ("search_curve:search_curve", "Compare searches at equal tuning: best loss against trials."),
    "resume": ("resume:resume", "Go on with a run, or extend its budget."),
    "export": ("export:export", "A checkpoint of a run over several GPUs as one process writes it."),
    "sample": ("sample:sample", "Text from a trained model."),
    "runs": ("runs:runs", "Every run below a folder, with its status and losses."),
    "compare": ("compare:compare", "Verdicts on runs at equal steps, tokens, FLOPs and seconds."),
    "diff": ("diff:diff", "Everything that two runs differ in, the gravest first."),
    "protocol": ("protocol:protocol", "Comparisons as files: list, show and run them."),
    "noise": ("noise:noise", "Noise floor of a protocol: how far runs that differ by seed alone lie apart."),
    "report": ("report:report", "A page on a series of runs: ranking, curves, sizes, failures, how to repeat it."),
    "verify-report": ("verify_report:verify_report", "Whether a report still says what its runs say."),
    "import": ("import_runs:import_runs", "Logs and tables of other trainers as external runs."),
    "data": ("data:data", "Describe, pack or fetch byte corpora."),
    "bench": ("bench:bench", "Speed of operations, steps and generation beside peers; the E3 suite."),
    "check": ("check:check", "Hold a model, or all models of a plugin, to the contract."),
    "new-plugin": ("new_plugin:new_plugin", "Write a plugin that works at once: a cell, a kernel stub, tests."),
    "install": ("install:install", "Install plugins without touching torch, triton and numpy."),
    "uninstall": ("uninstall:uninstall", "Uninstall plugins."),
    "plugins": ("plugins:plugins", "What is installed, what it brought, and what is wrong with it."),
    "doctor": ("doctor:doctor", "Whether this machine has what rnn-lab needs."),
    "tensorboard": ("tensorboard:tensorboard", "Show the curves of runs in the browser."),
    "completion": ("completion:completion", "Script that completes commands, options and models in a shell."),
}


@hookimpl
def register_commands(cli: Any) -> None:
    """Everything under rnn_lab_cli/commands."""
    for name, (target, text) in COMMANDS.items():
        cli.add_lazy(name, f"rnn_lab_cli.commands.{target}", help=text)
