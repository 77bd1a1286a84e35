"""`completion`: what a shell needs to complete commands, recipes and the fields of an experiment."""

from transformer_jax import brought, overrides, shipped
from transformer_jax.cli import process
from transformer_jax.cli.arguments import positional
from transformer_jax.errors import InputError

BASH = """\
_transformer_jax() {{
  local word=${{COMP_WORDS[COMP_CWORD]}}
  COMPREPLY=()
  case $COMP_CWORD:${{COMP_WORDS[1]}} in
    1:*) COMPREPLY=($(compgen -W "{commands}" -- "$word")) ;;
    2:train | 2:sweep | 3:recipes) COMPREPLY=($(compgen -W "{recipes}" -- "$word")) ;;
    2:recipes) COMPREPLY=($(compgen -W "copy" -- "$word")) ;;
    2:launch) COMPREPLY=($(compgen -W "{kinds}" -- "$word")) ;;
    *:train | *:sweep)
      if [[ $word == --* ]]; then
        COMPREPLY=($(compgen -W "$(transformer-jax completion flags "${{COMP_WORDS[2]}}" 2>/dev/null)" -- "$word"))
      fi ;;
  esac
}}
complete -o default -F _transformer_jax transformer-jax
"""
ZSH = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"  # zsh reads bash's completions by this


def main(arguments: list[str]) -> int:
    """Print the completion of a shell, or the flags of an experiment.

        transformer-jax completion bash|zsh
        transformer-jax completion flags EXPERIMENT

    For bash, once:

        transformer-jax completion bash >> ~/.bash_completion
    """
    kind, rest = positional(main, arguments, 1)
    if kind == "flags":
        (target,) = positional(main, rest, 1, exactly=True)
        experiment = process.variants(brought.read(target)[0])["experiment"]()
        print("\n".join(sorted({"--workdir", "--log", "--profile", "--no-verify"} | overrides.flags(experiment))))
        return 0
    if kind not in ("bash", "zsh") or rest:
        raise InputError(f"completion {' '.join(arguments)}: give bash, zsh, or flags EXPERIMENT")
    from transformer_jax.cli.launch import KINDS
    from transformer_jax.cli.main import COMMANDS

    words = {"commands": COMMANDS, "recipes": shipped.names(), "kinds": KINDS}
    print(
        (ZSH if kind == "zsh" else "") + BASH.format(**{name: " ".join(all_) for name, all_ in words.items()}), end=""
    )
    return 0
