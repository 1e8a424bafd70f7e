use super::*;

/// A recipe of scripts, and a guard that is a script, too.
struct Bench {
    dir: tempfile::TempDir,
    recipe: Recipe,
    guard: String,
}

const GOOD: &str =
    r#"read ask; echo "froze $ask" >> LOG; echo '{"frozen":1}'; read o; echo thawed >> LOG; echo '{"thawed":"now"}'"#;

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let recipe = Recipe { guest_agent: Some("/no/such/socket".into()), ..Recipe::default() };
        Bench { dir, recipe, guard: GOOD.to_owned() }
    }

    fn log_path(&self) -> String {
        self.dir.path().join("log").display().to_string()
    }

    fn script(&self, text: &str) -> Vec<String> {
        ["/bin/sh", "-c", &text.replace("LOG", &self.log_path())].map(str::to_owned).to_vec()
    }

    fn leftover(&self) -> PathBuf {
        self.dir.path().join("leftover")
    }

    fn make(&self, mut marker: impl FnMut() -> Result<(), String>) -> Made {
        let guard: Vec<OsString> = self.script(&self.guard).into_iter().map(OsString::from).collect();
        let context = Context { volume: "disk", point: "p", leftover: &self.leftover(), guard: &guard, never: &[] };
        let made = make(&self.recipe, context, &mut || {
            if self.log().last().is_some_and(|l| l == "froze") {
                assert!(self.leftover().exists(), "what is frozen is written down");
            }
            self.note("marker");
            marker()
        });
        assert!(!self.leftover().exists(), "nothing is left: {made:?}");
        made
    }

    fn note(&self, line: &str) {
        let log = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        std::fs::write(self.log_path(), format!("{log}{line}\n")).unwrap();
    }

    /// First words of what happened.
    fn log(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        log.lines().map(|l| l.split(' ').next().unwrap().to_owned()).collect()
    }
}

fn steps(made: &Made) -> Vec<(&str, bool)> {
    made.steps.iter().map(|s| (s.step.as_str(), s.ok)).collect()
}

#[test]
fn all_steps_in_their_order_with_what_they_said() {
    let mut bench = Bench::new();
    bench.recipe.pre = bench.script("echo pre $AFTERIMAGE_VOLUME $AFTERIMAGE_POINT >> LOG; echo quiet now");
    bench.recipe.post = bench.script("echo post $AFTERIMAGE_RESULT >> LOG; exit 1");
    let made = bench.make(|| Ok(()));
    assert_eq!(bench.log(), ["pre", "froze", "marker", "thawed", "post"]);
    // A post script that fails is told, and changes nothing.
    assert_eq!(steps(&made), [("pre", true), ("freeze", true), ("marker", true), ("thaw", true), ("post", false)]);
    assert_eq!((made.consistency.as_str(), &made.reason, made.steps[0].said.as_str()), ("app", &None, "quiet now"));
    assert!(made.steps[4].said.contains("exit status: 1"));
    let log = std::fs::read_to_string(bench.log_path()).unwrap();
    assert!(log.contains("pre disk p\n") && log.contains("post app\n") && log.contains("/no/such/socket"), "{log}");
    let text = serde_json::to_string(&made).unwrap();
    assert_eq!(serde_json::from_str::<Made>(&text).unwrap(), made);
}

#[test]
fn a_step_that_fails_makes_it_crash_consistent_or_nothing() {
    for (otherwise, verdict) in [(Otherwise::Crash, "crash"), (Otherwise::Fail, "failed")] {
        let mut bench = Bench::new();
        bench.recipe.otherwise = otherwise;
        bench.guard =
            r#"read ask; echo '{"trouble":"busy"}'; read o; echo thawed >> LOG; echo '{"thawed":"before"}'"#.into();
        let made = bench.make(|| Ok(()));
        assert_eq!((made.consistency.as_str(), made.reason.as_deref()), (verdict, Some("freeze: busy")));
        let marker = otherwise == Otherwise::Crash;
        assert_eq!(bench.log(), if marker { vec!["thawed", "marker"] } else { vec!["thawed"] });

        bench.recipe.pre = bench.script("sleep 100");
        bench.recipe.script_limit = Duration::from_millis(100);
        let made = bench.make(|| Ok(()));
        assert_eq!(made.consistency, verdict);
        assert!(made.reason.as_ref().unwrap().contains("longer than 100 ms"), "{made:?}");

        // It had thawed by itself: nobody knows whether before the marker.
        let mut bench = Bench::new();
        bench.recipe.otherwise = otherwise;
        bench.guard = r#"read ask; echo '{"frozen":1}'; read o; echo '{"thawed":"before"}'"#.into();
        let made = bench.make(|| Ok(()));
        assert_eq!((made.consistency.as_str(), made.steps.len()), (verdict, 3), "{made:?}");

        let bench = Bench::new();
        let made = bench.make(|| Err("the ring is full".to_owned()));
        assert_eq!((made.consistency.as_str(), made.reason.as_deref()), ("failed", Some("marker: the ring is full")));
        assert_eq!(bench.log(), ["froze", "marker", "thawed"]);
    }
}

#[test]
fn what_the_agent_needs_itself_is_never_frozen() {
    let mut bench = Bench::new();
    bench.recipe.guest_agent = None;
    bench.recipe.mounts = vec![bench.dir.path().to_path_buf()];
    let guard: Vec<OsString> = bench.script(GOOD).into_iter().map(OsString::from).collect();
    let never = [bench.dir.path().join("leftover-folder"), bench.dir.path().to_path_buf()];
    let context = Context { volume: "d", point: "p", leftover: &bench.leftover(), guard: &guard, never: &never };
    let made = make(&bench.recipe, context, &mut || Ok(()));
    assert!(made.reason.as_ref().unwrap().contains("lies on it") && bench.log().is_empty(), "{made:?}");
}

#[test]
fn the_next_start_ends_what_a_kill_has_left() {
    let bench = Bench::new();
    let leftover = Leftover {
        volume: "disk".into(),
        point: "p".into(),
        targets: Targets { mounts: vec![bench.dir.path().to_path_buf()], guest_agent: None },
        post: bench.script("echo post $AFTERIMAGE_RESULT >> LOG"),
        script_ms: 60_000,
    };
    std::fs::write(bench.leftover(), serde_json::to_vec(&leftover).unwrap()).unwrap();
    // Thawing what is not frozen may need root, and is tried until it is done: not here.
    forget_targets(&bench.leftover());
    assert!(bench.leftover().exists(), "the post script has still to be run");
    end_leftover(&bench.leftover());
    assert_eq!(std::fs::read_to_string(bench.log_path()).unwrap(), "post failed\n");
    assert!(!bench.leftover().exists());
    end_leftover(&bench.leftover());
}
