//! Small changes that are applied without the disk.

use super::*;

/// A write of one or two keys of a few, with a condition on one of them or a name now and then.
fn any_write(rng: &mut fastrand::Rng) -> GuardedWrite {
    let key = |rng: &mut fastrand::Rng| format!("k{}", rng.u8(0..60));
    let operations = (0..rng.usize(1..3)).map(|_| match rng.u8(0..4) {
        0 => delete(&key(rng)),
        _ => put(&key(rng), "1"),
    });
    let operations = operations.collect();
    let facts = match rng.u8(0..8) {
        0 => vec![Fact::Exists { key: key(rng) }],
        1 => vec![revision_is(&key(rng), None)],
        _ => vec![],
    };
    let write = write(operations, facts);
    if rng.u8(0..8) == 0 { named(&rng.u8(0..4).to_string(), write) } else { write }
}

#[test]
fn what_is_applied_in_memory_or_on_the_disk_is_the_same() {
    let disks = [SimDisk::new(1), SimDisk::new(2)];
    let [mixed, usual] = disks.each_ref().map(|disk| simulated::open(disk, 1 << 20).unwrap());
    let mut rng = fastrand::Rng::with_seed(7);
    let mut in_memory = 0;
    for _ in 0..1_000 {
        let writes: Vec<_> = (0..rng.usize(1..4)).map(|_| any_write(&mut rng)).collect();
        let outcomes = match mixed.apply_in_memory(&writes, &[]) {
            Some(outcomes) => {
                in_memory += 1;
                outcomes.unwrap()
            }
            None => apply(&mixed, &writes),
        };
        assert_eq!(format!("{outcomes:?}"), format!("{:?}", apply(&usual, &writes)));
    }
    assert_eq!(simulated::digest(&mixed), simulated::digest(&usual));
    assert!((100..900).contains(&in_memory), "{in_memory} of 1,000");
}

#[test]
fn what_the_disk_must_be_asked_for_is_not_applied_in_memory() {
    let (dir, data) = data();
    apply(&data, &[put_one("a", "1")]);
    drop(data);
    let data = open(&dir).unwrap();
    let change = put_one("a", "2");
    assert!(data.apply_in_memory(&[put_one("new", "1"), change.clone()], &[("own", "1".into())]).is_none());
    assert_eq!((data.revision(), data.meta("own").unwrap()), (1, None));
    // A key that was written since the start is known.
    apply(&data, std::slice::from_ref(&change));
    let outcomes = data.apply_in_memory(&[change], &[("own", "1".into())]).unwrap().unwrap();
    assert!(matches!(outcomes[..], [Outcome::Applied { revision: 3, .. }]), "{outcomes:?}");
    assert_eq!(data.meta("own").unwrap().unwrap(), "1");
}

#[test]
fn nothing_is_applied_in_memory_while_another_change_is_applied() {
    let (_dir, data) = data();
    apply(&data, &[put_one("a", "1")]);
    let applying = data.inner.applying.lock();
    assert!(data.apply_in_memory(&[put_one("a", "2")], &[]).is_none());
    drop(applying);
    assert!(data.apply_in_memory(&[put_one("a", "2")], &[]).is_some());
}
