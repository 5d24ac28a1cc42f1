//! Dockerfile instructions that change an image's configuration, for `import --change`.

use coracle::ErrorKind;
use coracle::image::ContainerConfig;

use crate::failure::Failure;

/// Applies one instruction, such as `CMD ["sh"]`.
pub fn apply(config: &mut ContainerConfig, instruction: &str) -> Result<(), Failure> {
    let refuse = |cause: &str| {
        let step = format!("apply the change {instruction:?}");
        Failure::new(ErrorKind::Invalid, &step, cause)
    };
    let (keyword, rest) = instruction.trim().split_once(char::is_whitespace).unwrap_or((instruction.trim(), ""));
    let rest = rest.trim();
    let keyword = keyword.to_ascii_uppercase();
    if rest.is_empty() && keyword != "CMD" && keyword != "ENTRYPOINT" {
        return Err(refuse("an instruction has a name and a value"));
    }
    match keyword.as_str() {
        "CMD" => config.cmd = command(rest),
        "ENTRYPOINT" => config.entrypoint = command(rest),
        "ENV" => {
            for (key, value) in pairs(rest).ok_or_else(|| refuse("expected NAME=VALUE"))? {
                let known = config.env.iter_mut().find(|known| known.split_once('=').is_some_and(|(it, _)| it == key));
                let variable = format!("{key}={value}");
                match known {
                    Some(known) => *known = variable,
                    None => config.env.push(variable),
                }
            }
        }
        "EXPOSE" => {
            for port in rest.split_whitespace() {
                let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
                number.parse::<u16>().map_err(|_| refuse("expected PORT or PORT/PROTOCOL"))?;
                config.exposed_ports.insert(format!("{number}/{protocol}"));
            }
        }
        "LABEL" => config.labels.extend(pairs(rest).ok_or_else(|| refuse("expected NAME=VALUE"))?),
        "STOPSIGNAL" => {
            rest.parse::<coracle::container::Signal>()?;
            config.stop_signal = rest.to_owned();
        }
        "USER" => config.user = rest.to_owned(),
        "VOLUME" => config.volumes.extend(list(rest).unwrap_or_else(|| words(rest))),
        "WORKDIR" if rest.starts_with('/') => config.working_dir = rest.to_owned(),
        "WORKDIR" => return Err(refuse("the working directory is an absolute path")),
        _ => {
            return Err(refuse("known are CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME and WORKDIR"));
        }
    }
    Ok(())
}

/// A JSON list of words, or a line for the shell.
fn command(text: &str) -> Vec<String> {
    match list(text) {
        Some(words) => words,
        None if text.is_empty() => vec![],
        None => vec!["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()],
    }
}

fn list(text: &str) -> Option<Vec<String>> {
    serde_json::from_str(text).ok()
}

/// `A=b C="d e"`, or the old form with one name and the rest of the line.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let first = text.split_whitespace().next()?;
    if !first.contains('=') {
        let (key, value) = text.split_once(char::is_whitespace)?;
        return Some(vec![(key.to_owned(), value.trim().to_owned())]);
    }
    let pairs = words(text).into_iter().map(|word| {
        let (key, value) = word.split_once('=')?;
        (!key.is_empty()).then(|| (key.to_owned(), value.to_owned()))
    });
    pairs.collect()
}

/// Splits at blanks that are neither quoted nor after a backslash, and takes quotes and backslashes away.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (vec![], None::<String>, None);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            ('\\', None | Some('"')) => word.get_or_insert_default().extend(letters.next()),
            ('"' | '\'', None) => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (letter, Some(open)) if letter == open => quote = None,
            (letter, None) if letter.is_whitespace() => words.extend(word.take()),
            (letter, _) => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn instructions_change_the_configuration() {
        let mut config = ContainerConfig::default();
        for change in [
            r#"CMD ["a", "b c"]"#,
            "entrypoint exec it",
            "ENV A=1 B=\"two words\" C='x'",
            "ENV A 3 4",
            "EXPOSE 80 53/udp",
            "LABEL a.b=c",
            "STOPSIGNAL SIGINT",
            "USER 1:2",
            "WORKDIR /srv",
            "VOLUME /data",
        ] {
            apply(&mut config, change).unwrap();
        }
        assert_eq!(config.cmd, ["a", "b c"]);
        assert_eq!(config.entrypoint, ["/bin/sh", "-c", "exec it"]);
        assert_eq!(config.env, ["A=3 4", "B=two words", "C=x"]);
        assert_eq!(config.exposed_ports.into_iter().collect::<Vec<_>>(), ["53/udp", "80/tcp"]);
        assert_eq!(config.labels["a.b"], "c");
        assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("1:2", "/srv"));
        assert!(config.volumes.contains("/data"));
    }

    #[test]
    fn nonsense_is_refused() {
        for change in ["", "RUN x", "WORKDIR srv", "ENV", "ENV A", "EXPOSE x", "STOPSIGNAL NOPE", "ENV =x"] {
            assert!(apply(&mut ContainerConfig::default(), change).is_err(), "{change}");
        }
    }
}
