//! Holds the shape of the tree: which module may import which, how long a file may be, what must not be written.
//!
//! The arrows are the ones of `docs/architecture.md`. A module imports what its arrow names, beside `units` and `wire`.

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    /// Module of the agent, and what of ours it may import.
    const AGENT: &[(&str, &[&str])] = &[
        ("config", &[]),
        ("units", &[]),
        ("wire", &[]),
        ("sys", &[]),
        ("dial", &[]),
        ("trouble", &[]),
        ("api", &["dial"]),
        ("balancer", &["dial"]),
        ("tunnel", &["balancer", "api", "dial"]),
        ("join", &["api", "balancer", "config", "trouble"]),
        ("runtime", &["sys"]),
        ("podnet", &["sys"]),
        ("kubelet", &["api", "runtime", "podnet", "sys", "trouble"]),
    ];

    /// Module of the server, and what of ours it may import.
    const SERVER: &[(&str, &[&str])] = &[
        ("config", &["store"]),
        ("store", &[]),
        ("schema", &["registry", "kinds"]),
        (
            "registry",
            &["store", "schema", "cache", "kinds", "request", "admission", "auth"],
        ),
        ("kinds", &["registry", "cache", "schema"]),
        ("auth", &["registry", "cache", "request", "kinds"]),
        (
            "admission",
            &["registry", "cache", "request", "kinds", "schema", "auth"],
        ),
        ("request", &["auth", "admission", "registry", "cache", "kinds"]),
        (
            "http",
            &[
                "request", "kinds", "auth", "cache", "registry", "schema", "tunnel", "join",
            ],
        ),
        ("cache", &["store"]),
        ("command", &["config", "control", "join", "kinds", "store"]),
        ("control", &["cache", "controllers", "join", "request", "store"]),
        // The last for the runner's tests, whose store refuses writes.
        ("controllers", &["cache", "request", "kinds", "registry", "store"]),
        ("scheduler", &["cache", "request", "controllers"]),
        // The last three for its tests, which make a server of them.
        (
            "peers",
            &["cache", "request", "tunnel", "registry", "auth", "kinds", "store"],
        ),
        ("tunnel", &[]),
        (
            "join",
            &[
                "request",
                "auth",
                "tunnel",
                "http",
                "cache",
                "config",
                "controllers",
                "store",
                "peers",
            ],
        ),
        ("addons", &["cache", "request"]),
    ];

    /// Nobody reads further in one go.
    const LONGEST: usize = 700;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    fn sources(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let entries = fs::read_dir(folder).map(|entries| entries.filter_map(Result::ok).collect::<Vec<_>>());
        for entry in entries.unwrap_or_default() {
            let path = entry.path();
            if path.is_dir() {
                found.extend(sources(&path));
            } else if path.extension().is_some_and(|end| end == "rs") {
                found.push(path);
            }
        }
        found
    }

    /// The modules of ours that a file names after `crate::`.
    fn imports(text: &str) -> Vec<String> {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let mut found = Vec::new();
        for line in code {
            for part in line.split("crate::").skip(1) {
                let names = part.strip_prefix('{').unwrap_or(part);
                let end = names.find(|letter: char| !letter.is_ascii_lowercase() && letter != '_');
                found.push(names.get(..end.unwrap_or(names.len())).unwrap_or_default().to_owned());
            }
        }
        found
    }

    fn wrong_arrows(package: &str, arrows: &[(&str, &[&str])]) -> Vec<String> {
        let folder = root().join(package).join("src");
        let mut wrong = Vec::new();
        for (module, allowed) in arrows {
            let mut files = sources(&folder.join(module));
            files.push(folder.join(format!("{module}.rs")));
            for file in files {
                let text = fs::read_to_string(&file).unwrap_or_default();
                for import in imports(&text) {
                    let known = arrows.iter().any(|(name, _)| *name == import);
                    let own = import == *module || ["units", "wire"].contains(&import.as_str());
                    if known && !own && !allowed.contains(&import.as_str()) {
                        wrong.push(format!("{}: {module} may not import {import}", file.display()));
                    }
                }
            }
        }
        wrong
    }

    #[test]
    fn modules_import_only_along_the_arrows() {
        let wrong = [wrong_arrows("agent", AGENT), wrong_arrows("server", SERVER)].concat();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn every_file_says_what_it_is_and_none_is_endless() {
        let mut wrong = Vec::new();
        for folder in ["agent", "server", "tests"] {
            for file in sources(&root().join(folder)) {
                let text = fs::read_to_string(&file).unwrap_or_default();
                if !text.starts_with("//!") {
                    wrong.push(format!("{}: has no header", file.display()));
                }
                let lines = text.lines().count();
                if lines > LONGEST {
                    wrong.push(format!("{}: {lines} lines, at most {LONGEST}", file.display()));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn unsafe_code_lives_in_one_place() {
        let mut wrong = Vec::new();
        for package in ["agent", "server"] {
            for file in sources(&root().join(package).join("src")) {
                let text = fs::read_to_string(&file).unwrap_or_default();
                let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
                let uses = code
                    .clone()
                    .any(|line| line.contains("unsafe {") || line.contains("unsafe fn"));
                if uses && !file.to_string_lossy().contains("/agent/src/sys/") {
                    wrong.push(file.display().to_string());
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    /// Who is refused looks for the words that he sees.
    #[test]
    fn every_refusal_of_a_join_is_on_its_page() {
        let read = |path: &str| fs::read_to_string(root().join(path)).unwrap_or_default();
        let page = read("docs/refused.md").replace('\n', " ");
        let code = read("agent/src/join/error.rs");
        let texts = code.split("#[error(").skip(1);
        let texts: Vec<&str> = texts.filter_map(|rest| rest.trim_start().strip_prefix('"')).collect();
        assert!(texts.len() > 10, "the texts are found");
        for text in texts {
            let words = text.split(['{', '(', ':', '"']).next().unwrap_or_default().trim_end();
            assert!(
                words.len() > 8 && page.contains(words),
                "{words:?} is not in docs/refused.md"
            );
        }
    }

    #[test]
    fn an_import_is_found_wherever_it_stands() {
        let text =
            "use crate::store::Store;\n// crate::http\nlet x = crate::cache::Cache::new();\nuse crate::{kinds, a};";
        assert_eq!(imports(text), ["store", "cache", "kinds"]);
    }
}
