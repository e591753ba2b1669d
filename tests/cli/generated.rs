//! Help, completions and manual pages: all that is generated knows all commands and exit codes.

use std::fs;

use vmm::exit::TABLE;

use crate::common::{Bench, stdout};

/// The words behind `vmm` of every command and every group of commands, as help lists them.
fn commands(bench: &Bench) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut open = vec![Vec::new()];
    while let Some(command) = open.pop() {
        for name in listed(&help(bench, &command, "--help")) {
            let path: Vec<String> = [&command[..], &[name]].concat();
            found.push(path.clone());
            open.push(path);
        }
    }
    found.sort();
    found
}

fn help(bench: &Bench, command: &[String], flag: &str) -> String {
    let mut arguments: Vec<&str> = command.iter().map(String::as_str).collect();
    arguments.push(flag);
    stdout(&bench.expect(0, &arguments))
}

/// The names under "Commands:" of a help text.
fn listed(help: &str) -> Vec<String> {
    help.lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !name.is_empty() && *name != "help")
        .map(str::to_owned)
        .collect()
}

/// What is behind `--` of the long options in a help text.
fn options(help: &str) -> Vec<&str> {
    help.lines()
        .filter_map(|line| line.trim_start().split_once("--"))
        .filter(|(before, _)| before.is_empty() || before.starts_with('-') && before.len() < 5)
        .filter_map(|(_, rest)| rest.split([' ', '.', '<', '[', '=']).next())
        .collect()
}

/// The lines of codes and meanings.
fn codes() -> impl Iterator<Item = String> {
    TABLE.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Text as a reader sees it.
fn plain(roff: &str) -> String {
    let text = roff.replace("\\-", "-").replace("\\*(Aq", "'").replace("\\fR", "");
    let text = text.replace("\\fB", "").replace("\\fI", "");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn every_command_has_help() {
    let bench = Bench::new();
    let commands = commands(&bench);
    let names: Vec<String> = commands.iter().map(|command| command.join(" ")).collect();
    for name in ["boot", "check", "completions", "image", "image push", "image verify", "man"] {
        assert!(names.iter().any(|found| found == name), "no {name} in {names:?}");
    }
    for command in &commands {
        let name = format!("vmm {}", command.join(" "));
        for flag in ["--help", "-h"] {
            let text = help(&bench, command, flag);
            assert!(text.contains(&format!("Usage: {name}")), "{text}");
        }
    }
    for command in [&[][..], &["boot".to_owned()]] {
        let text = plain(&help(&bench, command, "--help"));
        for line in codes() {
            assert!(text.contains(&line), "no {line:?} in {text}");
        }
    }
    let version = stdout(&bench.expect(0, &["--version"]));
    assert_eq!(version, format!("vmm {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_know_every_command_and_option() {
    let bench = Bench::new();
    let commands = commands(&bench);
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&bench.expect(0, &["completions", shell]));
        for command in &commands {
            let name = command.last().unwrap();
            assert!(script.contains(name.as_str()), "{shell}: no {command:?}");
            let text = help(&bench, command, "--help");
            let options = options(&text);
            assert!(options.contains(&"help") && options.contains(&"store"), "{text}");
            for option in options {
                assert!(script.contains(option), "{shell}: no --{option} of {command:?}");
            }
        }
    }
}

/// Bash itself completes with it, where there is one.
#[test]
fn bash_completes_commands() {
    let bench = Bench::new();
    let script = bench.path().join("completions.bash");
    fs::write(&script, bench.expect(0, &["completions", "bash"]).stdout).unwrap();
    let complete = r#"
        source "$1"
        COMP_WORDS=(vmm image "") COMP_CWORD=2
        _vmm vmm "" image
        printf '%s\n' "${COMPREPLY[@]}""#;
    let output = std::process::Command::new("bash")
        .args(["--norc", "-c", complete, "bash", script.to_str().unwrap()])
        .output();
    let Ok(output) = output else {
        eprintln!("no bash here: nothing to see");
        return;
    };
    let words = stdout(&output);
    for word in ["push", "ls", "inspect", "verify", "rm", "gc"] {
        assert!(words.lines().any(|line| line == word), "no {word:?} in {output:?}");
    }
}

#[test]
fn manual_pages_describe_every_command_and_the_exit_codes() {
    let bench = Bench::new();
    let folder = bench.path().join("man1");
    fs::create_dir(&folder).unwrap();
    bench.expect(0, &["man", folder.to_str().unwrap()]);
    let page = |name: &str| {
        let path = folder.join(format!("{name}.1"));
        plain(&fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}")))
    };
    let commands = commands(&bench);
    let index = page("vmm");
    for command in &commands {
        let name = format!("vmm-{}", command.join("-"));
        let text = page(&name);
        if command.len() == 1 {
            assert!(index.contains(&format!("{name}(1)")), "no {name} in {index}");
        }
        for option in options(&help(&bench, command, "--help")) {
            assert!(text.contains(&format!("--{option}")), "no --{option} in {name}");
        }
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), commands.len() + 1);
    for text in [index, page("vmm-boot")] {
        for line in codes() {
            assert!(text.contains(&line), "no {line:?} in {text}");
        }
    }
}
