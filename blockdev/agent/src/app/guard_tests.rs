use super::*;

const LONG: Duration = Duration::from_secs(30);

/// A guard of the user's making: a shell that says what it is told to say.
fn fake(script: &str) -> Vec<OsString> {
    ["/bin/sh", "-c", script].map(OsString::from).to_vec()
}

fn freeze(script: &str, limit: Duration) -> (Option<Guard>, Result<u64, String>) {
    Guard::freeze(&fake(script), &Targets::default(), limit, LONG)
}

fn thaw(guard: Option<Guard>) -> (Result<Thawed, String>, Receiver<()>) {
    let (over, heard) = channel();
    let result = guard.unwrap().thaw(Duration::from_millis(200), move || {
        let _ = over.send(());
    });
    (result, heard)
}

#[test]
fn what_a_guard_says_is_believed_and_nothing_else() {
    let script = r#"read ask; echo '{"frozen":2}'; read order; [ "$order" = thaw ] && echo '{"thawed":"now"}'"#;
    let (guard, frozen) = freeze(script, LONG);
    assert_eq!(frozen, Ok(2));
    let (thawed, over) = thaw(guard);
    assert_eq!(thawed, Ok(Thawed::Now));
    over.try_recv().unwrap();

    let (guard, frozen) = freeze(r#"read ask; echo '{"frozen":1}'; read order; echo '{"thawed":"before"}'"#, LONG);
    assert_eq!((frozen, thaw(guard).0), (Ok(1), Ok(Thawed::Before)));
    let (guard, frozen) =
        freeze(r#"read ask; echo '{"trouble":"it cannot"}'; read order; echo '{"thawed":"before"}'"#, LONG);
    assert_eq!((frozen, thaw(guard).0), (Err("it cannot".to_owned()), Ok(Thawed::Before)));
    let (guard, frozen) = freeze("read ask; echo nonsense; cat > /dev/null", LONG);
    assert!(frozen.unwrap_err().contains("said"));
    drop(guard);
    let (none, frozen) = Guard::freeze(&[OsString::from("/no/such")], &Targets::default(), LONG, LONG);
    assert!(none.is_none() && frozen.is_err());
}

#[test]
fn a_guard_that_dies_or_says_nothing_is_seen_through() {
    // It dies in the middle: the agent thaws itself (there is nothing to thaw here), and says that it knows nothing.
    let (guard, frozen) = freeze(r#"read ask; echo '{"frozen":1}'; kill -9 $$"#, LONG);
    assert_eq!(frozen, Ok(1));
    let (thawed, over) = thaw(guard);
    assert!(thawed.is_err());
    over.recv_timeout(LONG).unwrap();
    // It takes its time: the agent does not wait, and hears of the end when it comes.
    let (guard, frozen) =
        freeze(r#"read ask; echo '{"frozen":1}'; read order; cat > /dev/null; sleep 4; echo '{"thawed":"now"}'"#, LONG);
    assert_eq!(frozen, Ok(1));
    let (thawed, over) = thaw(guard);
    assert!(thawed.unwrap_err().contains("no answer") && over.try_recv().is_err());
    over.recv_timeout(LONG).unwrap();
    // It never freezes.
    let (guard, frozen) = freeze("read ask; cat > /dev/null", Duration::from_millis(50));
    assert!(frozen.unwrap_err().contains("no answer"));
    drop(guard);
}
