//! Who a container runs as: names and numbers of the image's `/etc/passwd` and `/etc/group`.

use super::message::Failure;

/// What the pod and the image say about the user.
#[derive(Clone, Debug, Default, serde::Deserialize, serde::Serialize)]
pub(super) struct UserPlan {
    /// The image's: `name`, `uid`, `name:group`, `uid:gid`.
    pub image: String,
    pub run_as_user: Option<u32>,
    pub run_as_group: Option<u32>,
    pub groups: Vec<u32>,
    pub non_root: bool,
}

/// Who it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, sorted.
    pub groups: Vec<u32>,
    pub home: String,
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Finds the user. `passwd` and `group`: the files' text, empty where there is none.
///
/// The groups are the primary one, those of the spec and those that `/etc/group` lists the user's name in.
///
/// # Errors
/// A name that is in no file; user 0 where the pod forbids it.
pub(super) fn identify(plan: &UserPlan, passwd: &str, group: &str) -> Result<Identity, Failure> {
    let (image_user, image_group) = match plan.image.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (plan.image.as_str(), None),
    };
    let wanted = plan
        .run_as_user
        .map_or_else(|| image_user.to_owned(), |uid| uid.to_string());
    let entry = match wanted.parse::<u32>() {
        Ok(uid) => find_user(passwd, |entry| entry.uid == uid).unwrap_or(Entry {
            name: "",
            uid,
            gid: 0,
            home: "/",
        }),
        Err(_) if wanted.is_empty() => find_user(passwd, |entry| entry.uid == 0).unwrap_or(Entry {
            name: "",
            uid: 0,
            gid: 0,
            home: "/",
        }),
        Err(_) => find_user(passwd, |entry| entry.name == wanted).ok_or_else(|| {
            Failure::start(format!(
                "unable to find user {wanted}: no matching entries in passwd file"
            ))
        })?,
    };
    if plan.non_root && entry.uid == 0 {
        return Err(Failure::spec("container has runAsNonRoot and image will run as root"));
    }
    let gid = match (plan.run_as_group, image_group) {
        (Some(gid), _) => gid,
        // The image's group belongs to the image's user.
        (None, Some(name)) if plan.run_as_user.is_none() => find_group(group, name).ok_or_else(|| {
            Failure::start(format!(
                "unable to find group {name}: no matching entries in group file"
            ))
        })?,
        _ => entry.gid,
    };
    let mut groups = plan.groups.clone();
    groups.push(gid);
    if !entry.name.is_empty() {
        groups.extend(groups_of(group, entry.name));
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(Identity {
        uid: entry.uid,
        gid,
        groups,
        home: if entry.home.is_empty() {
            "/".into()
        } else {
            entry.home.into()
        },
    })
}

fn find_user<'a>(passwd: &'a str, matches: impl Fn(&Entry<'a>) -> bool) -> Option<Entry<'a>> {
    let parse = |line: &'a str| {
        let mut fields = line.trim().split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let home = fields.nth(1).unwrap_or("");
        Some(Entry { name, uid, gid, home })
    };
    passwd.lines().filter_map(parse).find(matches)
}

/// Name, number, members of each group.
fn group_lines(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        Some((name, fields.next()?.parse().ok()?, fields.next().unwrap_or("")))
    })
}

fn find_group(group: &str, wanted: &str) -> Option<u32> {
    wanted.parse().ok().or_else(|| {
        let mut lines = group_lines(group);
        lines.find(|(name, ..)| *name == wanted).map(|(_, gid, _)| gid)
    })
}

fn groups_of<'a>(group: &'a str, user: &'a str) -> impl Iterator<Item = u32> + 'a {
    group_lines(group)
        .filter(move |(_, _, members)| members.split(',').any(|member| member == user))
        .map(|(_, gid, _)| gid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34:web:/srv:/bin/false\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nextra:x:50:web,other\nno:x:nan:web\n";

    fn plan(image: &str, user: Option<u32>, group: Option<u32>, groups: &[u32]) -> UserPlan {
        UserPlan {
            image: image.into(),
            run_as_user: user,
            run_as_group: group,
            groups: groups.into(),
            non_root: false,
        }
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        for (given, uid, gid, groups, home) in [
            (plan("", None, None, &[]), 0, 0, vec![0], "/root"),
            (plan("web", None, None, &[]), 33, 34, vec![34, 50], "/srv"),
            (plan("33", None, None, &[]), 33, 34, vec![34, 50], "/srv"),
            (plan("web:extra", None, None, &[]), 33, 50, vec![50], "/srv"),
            (plan("web:7", None, None, &[]), 33, 7, vec![7, 50], "/srv"),
            (plan("1234", None, None, &[]), 1234, 0, vec![0], "/"),
            (
                plan("web:extra", Some(1000), None, &[2000]),
                1000,
                0,
                vec![0, 2000],
                "/",
            ),
            (plan("web", Some(33), Some(9), &[]), 33, 9, vec![9, 50], "/srv"),
        ] {
            let found = identify(&given, PASSWD, GROUP).unwrap();
            let expected = Identity {
                uid,
                gid,
                groups,
                home: home.into(),
            };
            assert_eq!(found, expected, "{given:?}");
        }
    }

    #[test]
    fn an_unknown_name_and_a_forbidden_root_are_refused() {
        assert!(identify(&plan("nobody", None, None, &[]), PASSWD, GROUP).is_err());
        assert!(identify(&plan("web:none", None, None, &[]), PASSWD, GROUP).is_err());
        let careful = UserPlan {
            non_root: true,
            ..plan("", None, None, &[])
        };
        assert!(identify(&careful, "", "").is_err());
        assert!(
            identify(
                &UserPlan {
                    run_as_user: Some(1),
                    ..careful
                },
                "",
                ""
            )
            .is_ok()
        );
    }
}
