//! The cluster's two secrets: `cred/passwd`, the token files, and who a user name and password are (1.3, 1.6).
//!
//! On disk `passwd` holds passwords as K3s' does; in memory only keyed digests are kept, under a key that is made anew at
//! each start, and compared in constant time. (K3s keeps scrypt hashes; a digest costs no memory and lets hundreds of
//! nodes a second log in. It guards against the same thing: a password seen in a memory dump.)

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::wire::join::hex;
use agent::wire::token::{Secret, TokenError, secure, server_secret};
use arc_swap::ArcSwap;
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};

use super::csv;
use super::files::{self, PRIVATE, PRIVATE_FOLDER};
use crate::request::User;

/// The user that agents are.
pub const NODE: &str = "node";
/// The user that servers and administrators are.
pub const SERVER: &str = "server";
/// Group of `node`.
pub const AGENT_GROUP: &str = "k3s:agent";
/// Group of `server`.
pub const SERVER_GROUP: &str = "k3s:server";

/// What the operator gave, as given.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// `--token`.
    pub token: Option<Secret>,
    /// `--agent-token`; once the bootstrap record was read, what agents of this cluster join with if it is not `token`.
    pub agent_token: Option<Secret>,
}

/// Why there are no usable passwords.
#[derive(Debug, thiserror::Error)]
pub enum PasswdError {
    /// Choose another one.
    #[error(
        "{what} cannot be the secret of a cluster: {source}. Give a plain password that neither begins with K10 nor looks like \
         a bootstrap token (abcdef.0123456789abcdef)"
    )]
    Token {
        /// Which flag or file.
        what: String,
        /// In K3s' words.
        source: TokenError,
    },
    /// Repair or remove the file.
    #[error("{}: not the CSV of K3s' passwd file", .0.display())]
    Broken(PathBuf),
    /// Look at the disk.
    #[error(transparent)]
    Disk(#[from] io::Error),
    /// No randomness.
    #[error("the system has no randomness")]
    Randomness,
}

/// The next token, or a first server's first one, from before the datastore has it until this machine's files do.
const NEXT: &str = "token.next";

/// Who may log in with a password.
pub struct Passwd {
    key: hmac::Key,
    now: ArcSwap<Now>,
    dir: PathBuf,
    hash: String,
}

/// Who may at present.
struct Now {
    users: Vec<Known>,
    /// Another server has rotated the token, and this one does not know the new one.
    behind: bool,
}

struct Known {
    name: String,
    role: String,
    digest: hmac::Tag,
}

impl Passwd {
    /// Decides the secrets (given, else those on disk, else random) and writes `token`, `node-token`, `agent-token` and
    /// `cred/passwd` under `dir` (`<data>/server`). `hash`: of the cluster's authority, for the secure form.
    ///
    /// # Errors
    /// [`PasswdError`] says which flag or file and what to do.
    pub fn load_or_create(dir: &Path, given: &Given, hash: &str) -> Result<Self, PasswdError> {
        let random = SystemRandom::new();
        let path = dir.join("cred/passwd");
        files::folder(&dir.join("cred"), PRIVATE_FOLDER)?;
        let server = match known_secret(dir, given)? {
            Some(password) => password,
            None => random_secret()?,
        };
        let agent = agent_secret(given)?;
        let rows = rows_on_disk(&path, &server, agent.as_ref().unwrap_or(&server))?;
        files::write_if_changed(&path, csv::write(rows.iter().map(Vec::as_slice)).as_bytes(), PRIVATE)?;

        let token = format!("{}\n", secure(hash, SERVER, &server).expose());
        files::write_if_changed(&dir.join("token"), token.as_bytes(), PRIVATE)?;
        files::link(&dir.join("node-token"), "token")?;
        let agent_path = dir.join("agent-token");
        match &agent {
            None => files::link(&agent_path, "token")?,
            Some(agent) => write_own(&agent_path, &format!("{}\n", secure(hash, NODE, agent).expose()))?,
        }
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &random).map_err(|_| PasswdError::Randomness)?;
        let users = rows.iter().filter_map(|row| known(row, &key)).collect();
        Ok(Self {
            key,
            now: ArcSwap::from_pointee(Now { users, behind: false }),
            dir: dir.to_owned(),
            hash: hash.to_owned(),
        })
    }

    /// The cluster's secret, as it lies on disk.
    ///
    /// # Errors
    /// When it is not there, or cannot be read.
    pub fn secret(&self) -> Result<Secret, PasswdError> {
        let missing = || io::Error::other(format!("{}: missing", self.dir.join("token").display()));
        known_secret(&self.dir, &Given::default())?.ok_or_else(|| missing().into())
    }

    /// Keeps the token that is to be the next one, before anything is changed. Whatever cuts the rotation off then, the
    /// next start knows how to go on ([`super::bootstrap::settle`]).
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn prepare(&self, next: &Secret) -> Result<(), PasswdError> {
        prepare(&self.dir, &self.hash, next)
    }

    /// Makes the next token the present one, on disk and for whoever logs in: the old one is refused from here on.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn adopt(&self, next: &Secret) -> Result<(), PasswdError> {
        adopt(&self.dir, next)?;
        self.reload()
    }

    /// Lets in whom the file names now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn reload(&self) -> Result<(), PasswdError> {
        let rows = read_rows(&self.dir.join("cred/passwd"))?;
        let users = rows.iter().filter_map(|row| known(row, &self.key)).collect();
        self.now.store(Arc::new(Now { users, behind: false }));
        Ok(())
    }

    /// Lets nobody in any more by the cluster's secret, which is another one by now; an agents' secret of its own goes on.
    pub fn retire(&self) {
        let bound = bound(&self.dir);
        let rows = read_rows(&self.dir.join("cred/passwd")).unwrap_or_default();
        let users = rows.iter().filter_map(|row| known(row, &self.key));
        let users = users.filter(|known| bound.iter().all(|(user, _)| *user != known.name));
        self.now.store(Arc::new(Now {
            users: users.collect(),
            behind: true,
        }));
    }

    /// Whether the token is another one by now, which this server has to be restarted with.
    pub fn is_behind(&self) -> bool {
        self.now.load().behind
    }

    /// Who this is, if the password is the one on record.
    pub fn check(&self, user: &str, password: &str) -> Option<User> {
        let now = self.now.load();
        let known = now.users.iter().find(|known| known.name == user)?;
        hmac::verify(&self.key, password.as_bytes(), known.digest.as_ref()).ok()?;
        Some(User::new(&known.name, &[&known.role]))
    }
}

impl crate::auth::who::Passwords for Passwd {
    fn check(&self, user: &str, password: &str) -> Option<User> {
        Self::check(self, user, password)
    }
}

/// The cluster's secret as far as this machine knows it: given, else in `token`, else in `passwd` (a directory of K3s that
/// lost its token file).
///
/// # Errors
/// [`PasswdError`] says which flag or file and what to do.
pub fn known_secret(dir: &Path, given: &Given) -> Result<Option<Secret>, PasswdError> {
    if let Some(text) = &given.token {
        return usable("--token", text).map(Some);
    }
    let path = dir.join("token");
    if let Some(text) = files::read(&path)? {
        return usable(&path.display().to_string(), &Secret::new(text)).map(Some);
    }
    let rows = read_rows(&dir.join("cred/passwd"))?;
    let known = [SERVER, NODE].iter().find_map(|user| password(&rows, user));
    Ok(known.map(Secret::new))
}

/// Keeps the token that is to be the next one. `hash`: of the cluster's authority.
///
/// # Errors
/// When it cannot be written.
pub fn prepare(dir: &Path, hash: &str, next: &Secret) -> Result<(), PasswdError> {
    let text = format!("{}\n", secure(hash, SERVER, next).expose());
    Ok(files::write(&dir.join(NEXT), text.as_bytes(), PRIVATE)?)
}

/// The token that a rotation, or the first start of a cluster, was making the present one when it was cut off.
///
/// # Errors
/// When it cannot be read.
pub fn next(dir: &Path) -> Result<Option<Secret>, PasswdError> {
    let path = dir.join(NEXT);
    let text = files::read(&path)?.map(Secret::new);
    text.map(|text| usable(&path.display().to_string(), &text)).transpose()
}

/// Makes the next token the present one on disk. The last step gives it its name: until then it can be done again.
///
/// # Errors
/// When a file cannot be written.
pub fn adopt(dir: &Path, next: &Secret) -> Result<(), PasswdError> {
    files::folder(&dir.join("cred"), PRIVATE_FOLDER)?;
    let rows = rotated_file(dir, next)?;
    files::write_if_changed(&dir.join("cred/passwd"), rows.as_bytes(), PRIVATE)?;
    Ok(files::rename(&dir.join(NEXT), &dir.join("token"))?)
}

/// Forgets a next token that never came to be.
///
/// # Errors
/// When it cannot be removed.
pub fn forget_next(dir: &Path) -> Result<(), PasswdError> {
    Ok(files::remove(&dir.join(NEXT))?)
}

/// The password file as it is to be once `next` is the cluster's secret.
///
/// # Errors
/// When that on disk is not CSV.
pub fn rotated_file(dir: &Path, next: &Secret) -> Result<String, PasswdError> {
    let mut rows = read_rows(&dir.join("cred/passwd"))?;
    for (user, role) in bound(dir) {
        set(&mut rows, user, next, role);
    }
    Ok(csv::write(rows.iter().map(Vec::as_slice)))
}

/// Who logs in with the cluster's secret: agents too, unless they were given one of their own (`agent-token` is then no link).
fn bound(dir: &Path) -> &'static [(&'static str, &'static str)] {
    // K3s' order in a new file.
    let all = &[(NODE, AGENT_GROUP), (SERVER, SERVER_GROUP)];
    let own = dir.join("agent-token");
    match own.exists() && !own.is_symlink() {
        true => all.split_first().map_or(all, |(_, servers)| servers),
        false => all,
    }
}

/// What agents join with, if that is another than the cluster's secret.
///
/// # Errors
/// When it cannot be used.
pub fn agent_secret(given: &Given) -> Result<Option<Secret>, PasswdError> {
    let usable = |text: &Secret| usable("--agent-token", text);
    given.agent_token.as_ref().map(usable).transpose()
}

/// What agents join with by a password file, if that is another than the cluster's secret.
pub fn own_agent_secret(file: &str) -> Option<Secret> {
    let rows = csv::read(file)?;
    let (server, agent) = (password(&rows, SERVER)?, password(&rows, NODE)?);
    (agent != server).then(|| Secret::new(agent))
}

/// A password file in which agents join with `agent`. `None`: it says so already. One that cannot be read begins anew.
pub fn with_agent_secret(file: &str, server: &Secret, agent: &Secret) -> Option<String> {
    let mut rows = csv::read(file).unwrap_or_default();
    if password(&rows, NODE) == Some(agent.expose()) && password(&rows, SERVER) == Some(server.expose()) {
        return None;
    }
    set(&mut rows, NODE, agent, AGENT_GROUP);
    set(&mut rows, SERVER, server, SERVER_GROUP);
    Some(csv::write(rows.iter().map(Vec::as_slice)))
}

fn password<'r>(rows: &'r [Vec<String>], user: &str) -> Option<&'r str> {
    let row = rows.iter().find(|row| row.get(1).is_some_and(|name| name == user))?;
    row.first().map(String::as_str).filter(|password| !password.is_empty())
}

/// The password file as it is to be: that on disk, with these secrets.
///
/// # Errors
/// When that on disk is not CSV.
pub fn wanted_file(dir: &Path, server: &Secret, agent: &Secret) -> Result<String, PasswdError> {
    let rows = rows_on_disk(&dir.join("cred/passwd"), server, agent)?;
    Ok(csv::write(rows.iter().map(Vec::as_slice)))
}

fn rows_on_disk(path: &Path, server: &Secret, agent: &Secret) -> Result<Vec<Vec<String>>, PasswdError> {
    let mut rows = read_rows(path)?;
    set(&mut rows, NODE, agent, AGENT_GROUP);
    set(&mut rows, SERVER, server, SERVER_GROUP);
    Ok(rows)
}

fn read_rows(path: &Path) -> Result<Vec<Vec<String>>, PasswdError> {
    match files::read(path)? {
        Some(text) => csv::read(&text).ok_or_else(|| PasswdError::Broken(path.to_owned())),
        None => Ok(Vec::new()),
    }
}

fn usable(what: &str, text: &Secret) -> Result<Secret, PasswdError> {
    server_secret(text.expose()).map_err(|source| PasswdError::Token {
        what: what.to_owned(),
        source,
    })
}

/// A secret of 16 random bytes in hexadecimal, as K3s makes them.
///
/// # Errors
/// When the system has no randomness.
pub fn random_secret() -> Result<Secret, PasswdError> {
    let mut bytes = [0; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| PasswdError::Randomness)?;
    Ok(Secret::new(hex(&bytes)))
}

/// Sets a user's row, keeping the others and their order.
fn set(rows: &mut Vec<Vec<String>>, user: &str, password: &Secret, role: &str) {
    let row: Vec<String> = [password.expose(), user, user, role].map(str::to_owned).into();
    match rows.iter_mut().find(|row| row.get(1).is_some_and(|name| name == user)) {
        Some(old) => *old = row,
        None => rows.push(row),
    }
}

fn known(row: &[String], key: &hmac::Key) -> Option<Known> {
    let [password, name, rest @ ..] = row else { return None };
    let role = rest.get(1).cloned().unwrap_or_default();
    let digest = hmac::sign(key, password.as_bytes());
    (!password.is_empty()).then(|| Known {
        name: name.clone(),
        role,
        digest,
    })
}

/// Writes a file where a symbolic link may be: the link is replaced, not followed.
fn write_own(path: &Path, text: &str) -> io::Result<()> {
    match path.is_symlink() {
        true => files::write(path, text.as_bytes(), PRIVATE),
        false => files::write_if_changed(path, text.as_bytes(), PRIVATE).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::scratch::Scratch;

    const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn given(token: Option<&str>, agent_token: Option<&str>) -> Given {
        Given {
            token: token.map(Secret::new),
            agent_token: agent_token.map(Secret::new),
        }
    }

    fn read(scratch: &Scratch, name: &str) -> String {
        fs::read_to_string(scratch.0.join(name)).unwrap()
    }

    #[test]
    fn a_given_token_makes_the_files_of_k3s() {
        let scratch = Scratch::new("passwd-given");
        let passwd = Passwd::load_or_create(&scratch.0, &given(Some("secret"), None), HASH).unwrap();
        assert_eq!(read(&scratch, "token"), format!("K10{HASH}::server:secret\n"));
        assert_eq!(fs::read_link(scratch.0.join("node-token")).unwrap(), Path::new("token"));
        assert_eq!(
            fs::read_link(scratch.0.join("agent-token")).unwrap(),
            Path::new("token")
        );
        assert_eq!(
            read(&scratch, "cred/passwd"),
            "secret,node,node,k3s:agent\nsecret,server,server,k3s:server\n"
        );
        let groups = |user, password| passwd.check(user, password).map(|user| user.groups);
        let of = |group: &str| Some(vec![group.to_owned(), "system:authenticated".to_owned()]);
        assert_eq!(groups("node", "secret"), of("k3s:agent"));
        assert_eq!(groups("server", "secret"), of("k3s:server"));
        for (user, password) in [("node", "Secret"), ("node", ""), ("", "secret"), ("admin", "secret")] {
            assert_eq!(groups(user, password), None, "{user}:{password}");
        }
    }

    #[test]
    fn an_agent_token_does_not_log_in_as_server() {
        let scratch = Scratch::new("passwd-agent");
        Passwd::load_or_create(&scratch.0, &given(Some("a"), None), HASH).unwrap();
        let passwd = Passwd::load_or_create(&scratch.0, &given(None, Some("b")), HASH).unwrap();
        assert_eq!(read(&scratch, "agent-token"), format!("K10{HASH}::node:b\n"));
        assert_eq!(
            read(&scratch, "token"),
            format!("K10{HASH}::server:a\n"),
            "the link was replaced, not followed"
        );
        assert!(passwd.check("node", "b").is_some() && passwd.check("server", "a").is_some());
        assert!(passwd.check("node", "a").is_none() && passwd.check("server", "b").is_none());
        Passwd::load_or_create(&scratch.0, &given(None, None), HASH).unwrap();
        assert_eq!(
            read(&scratch, "agent-token"),
            format!("K10{HASH}::server:a\n"),
            "the cluster has none: a link again"
        );
    }

    #[test]
    fn an_agent_token_is_put_into_a_password_file_of_any_state() {
        let (server, agent) = (Secret::new("a"), Secret::new("b"));
        let whole = "b,node,node,k3s:agent\na,server,server,k3s:server\n";
        for before in [
            "",
            "a,node,node,k3s:agent\na,server,server,k3s:server\n",
            "\"a,node,node",
        ] {
            assert_eq!(
                with_agent_secret(before, &server, &agent).as_deref(),
                Some(whole),
                "{before}"
            );
        }
        assert_eq!(with_agent_secret(whole, &server, &agent), None);
    }

    #[test]
    fn a_random_token_stays_for_good() {
        let scratch = Scratch::new("passwd-random");
        Passwd::load_or_create(&scratch.0, &given(None, None), HASH).unwrap();
        let first = read(&scratch, "token");
        assert_eq!(first.len(), 3 + 64 + 2 + "server:".len() + 32 + 1);
        Passwd::load_or_create(&scratch.0, &given(None, None), HASH).unwrap();
        assert_eq!(read(&scratch, "token"), first);
        fs::remove_file(scratch.0.join("token")).unwrap();
        Passwd::load_or_create(&scratch.0, &given(None, None), HASH).unwrap();
        assert_eq!(read(&scratch, "token"), first, "passwd remembers");
    }

    #[test]
    fn other_users_keep_their_rows() {
        let scratch = Scratch::new("passwd-others");
        fs::create_dir_all(scratch.0.join("cred")).unwrap();
        fs::write(
            scratch.0.join("cred/passwd"),
            "old,node,node,k3s:agent\nx,admin,admin,system:masters\n",
        )
        .unwrap();
        let passwd = Passwd::load_or_create(&scratch.0, &given(None, None), HASH).unwrap();
        assert_eq!(
            read(&scratch, "cred/passwd"),
            "old,node,node,k3s:agent\nx,admin,admin,system:masters\nold,server,server,k3s:server\n"
        );
        assert!(passwd.check("admin", "x").is_some());
    }

    #[test]
    fn a_rotated_token_takes_the_old_ones_place_on_disk_and_at_the_door() {
        let scratch = Scratch::new("passwd-rotate");
        let passwd = Passwd::load_or_create(&scratch.0, &given(Some("old"), None), HASH).unwrap();
        let new = Secret::new("new");
        assert_eq!(passwd.secret().unwrap().expose(), "old");
        passwd.prepare(&new).unwrap();
        assert_eq!(next(&scratch.0).unwrap(), Some(new.clone()));
        assert_eq!(read(&scratch, "token"), format!("K10{HASH}::server:old\n"), "not yet");
        assert!(passwd.check("node", "old").is_some());
        passwd.adopt(&new).unwrap();
        for name in ["token", "node-token", "agent-token"] {
            assert_eq!(read(&scratch, name), format!("K10{HASH}::server:new\n"), "{name}");
            let mode = fs::metadata(scratch.0.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert_eq!(
            read(&scratch, "cred/passwd"),
            "new,node,node,k3s:agent\nnew,server,server,k3s:server\n"
        );
        assert_eq!(next(&scratch.0).unwrap(), None);
        for user in ["node", "server"] {
            assert!(passwd.check(user, "new").is_some() && passwd.check(user, "old").is_none());
        }
    }

    #[test]
    fn agents_with_a_secret_of_their_own_keep_it_and_a_server_that_is_behind_lets_only_them_in() {
        let scratch = Scratch::new("passwd-rotate-agents");
        let passwd = Passwd::load_or_create(&scratch.0, &given(Some("old"), Some("mine")), HASH).unwrap();
        passwd.prepare(&Secret::new("new")).unwrap();
        passwd.adopt(&Secret::new("new")).unwrap();
        assert_eq!(read(&scratch, "agent-token"), format!("K10{HASH}::node:mine\n"));
        assert!(passwd.check("node", "mine").is_some() && passwd.check("server", "new").is_some());
        passwd.retire();
        assert!(passwd.is_behind() && passwd.check("node", "mine").is_some());
        assert!(passwd.check("server", "new").is_none());
        let alone = Scratch::new("passwd-retire");
        let passwd = Passwd::load_or_create(&alone.0, &given(Some("old"), None), HASH).unwrap();
        passwd.retire();
        assert!(passwd.check("node", "old").is_none() && passwd.check("server", "old").is_none());
    }

    #[test]
    fn what_could_not_be_used_again_is_refused_at_once() {
        let scratch = Scratch::new("passwd-refused");
        for text in ["K10mistake", "abcdef.0123456789abcdef", "  "] {
            let error = Passwd::load_or_create(&scratch.0, &given(Some(text), None), HASH)
                .err()
                .unwrap();
            assert!(matches!(error, PasswdError::Token { .. }), "{text}");
            assert!(!error.to_string().contains("mistake"), "the secret is not repeated");
        }
        assert!(!scratch.0.join("token").exists());
        fs::write(scratch.0.join("cred/passwd"), "\"open").unwrap();
        let error = Passwd::load_or_create(&scratch.0, &given(Some("x"), None), HASH)
            .err()
            .unwrap();
        assert!(matches!(error, PasswdError::Broken(_)));
    }
}
