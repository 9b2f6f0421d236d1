//! Stores of other versions, and copies of stores.

use super::*;

fn tables(connection: &Connection) -> Vec<String> {
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name";
    let mut select = connection.prepare(sql).unwrap();
    let rows = select.query_map([], |row| row.get(0)).unwrap();
    rows.collect::<std::result::Result<_, _>>().unwrap()
}

#[test]
fn a_store_of_the_first_version_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let old = Connection::open(folder.path().join(STORE)).unwrap();
    old.execute_batch(TABLES).unwrap();
    old.execute_batch("INSERT INTO results VALUES ('web', '{}'); PRAGMA user_version = 1;")
        .unwrap();
    drop(old);
    let store = Store::open(folder.path()).unwrap();
    assert_eq!(store.results().unwrap(), [("web".to_owned(), "{}".to_owned())]);
    let fresh_folder = tempfile::tempdir().unwrap();
    let fresh = Store::open(fresh_folder.path()).unwrap();
    assert_eq!(tables(&store.connection), tables(&fresh.connection));
    drop(store);
    let again = Store::open(folder.path()).unwrap();
    assert_eq!(again.results().unwrap().len(), 1);
}

#[test]
fn a_store_of_the_second_version_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let old = Connection::open(folder.path().join(STORE)).unwrap();
    old.execute_batch(&[TABLES, TABLES_2, "PRAGMA user_version = 2;"].concat()).unwrap();
    drop(old);
    let store = Store::open(folder.path()).unwrap();
    let fresh_folder = tempfile::tempdir().unwrap();
    let fresh = Store::open(fresh_folder.path()).unwrap();
    assert_eq!(tables(&store.connection), tables(&fresh.connection));
    assert_eq!(store.record::<u8>(Table::Settings, "policy").unwrap(), None);
    store.begin().unwrap();
    store.put(Table::Settings, "policy", &7).unwrap();
    store.commit().unwrap();
    assert_eq!(store.record(Table::Settings, "policy").unwrap(), Some(7));
}

#[test]
fn a_store_of_a_later_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let later = Connection::open(folder.path().join(STORE)).unwrap();
    later.execute_batch(&format!("PRAGMA user_version = {}", VERSION + 1)).unwrap();
    let error = Store::open(folder.path()).err().unwrap().to_string();
    assert!(error.contains("newer version of limpet"), "{error}");
}

#[test]
fn how_far_a_forgotten_device_had_come_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let held = Held { epoch: 2, generation: 7 };
    store.begin().unwrap();
    store.forget_device("pi-1", held).unwrap();
    store.commit().unwrap();
    assert_eq!(store.forgotten("pi-1").unwrap(), Some(held));
    assert_eq!(store.forgotten("pi-2").unwrap(), None);
}

/// A folder with a store that holds an event, its backup in a file, and its key.
fn backed_up() -> (tempfile::TempDir, PathBuf, [u8; 32]) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let store = Store::open(&data).unwrap();
    let keys = store.keys().unwrap();
    store.begin().unwrap();
    store.put_event(&EventRow { kind: "first".to_owned(), ..EventRow::default() }).unwrap();
    let secret = ("db".parse().unwrap(), 1, 5);
    store.put_secret(&secret, &b"hunter2".to_vec().into()).unwrap();
    store.commit().unwrap();
    // What is not committed is in no backup, and does not keep one from being made.
    store.begin().unwrap();
    store.put_event(&EventRow { kind: "second".to_owned(), ..EventRow::default() }).unwrap();
    let pieces: Vec<_> = store.source().take().unwrap().map(|p| p.unwrap()).collect();
    store.commit().unwrap();
    let path = folder.path().join("backup");
    std::fs::write(&path, pieces.concat()).unwrap();
    assert!(!data.join(backup::PART).exists());
    (folder, path, *keys.present().seed())
}

#[test]
fn a_backup_is_the_store_of_one_moment_and_its_key() {
    let (folder, path, seed) = backed_up();
    let data = folder.path().join("restored");
    let header = restore(&path, &data, Existing::Keep).unwrap();
    assert_eq!((header.devices, header.events), (0, 1));
    let store = Store::open(&data).unwrap();
    assert_eq!(*store.keys().unwrap().present().seed(), seed);
    let filter = EventFilter { limit: 10, ..EventFilter::default() };
    let kinds: Vec<String> = store.events(&filter).unwrap().into_iter().map(|e| e.kind).collect();
    assert_eq!(kinds, ["first"]);
    let secret = store.secret(&"db".parse().unwrap(), 1).unwrap();
    assert_eq!(secret.unwrap().expose(), b"hunter2");
}

#[test]
fn a_restore_that_is_refused_leaves_everything_as_it_was() {
    let (folder, path, _) = backed_up();
    let data = folder.path().join("data");
    let names = || {
        let entries = std::fs::read_dir(&data).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let refused = |file: &Path, existing| restore(file, &data, existing).err().unwrap().to_string();
    let why = refused(&path, Existing::Keep);
    assert!(why.contains("already holds a store"), "{why}");

    let good = std::fs::read(&path).unwrap();
    let cut = folder.path().join("cut");
    std::fs::write(&cut, &good[..good.len() - 1]).unwrap();
    let why = refused(&cut, Existing::PutAside);
    assert!(why.contains("cut: it is damaged or cut short"), "{why}");

    let open = Store::open(&data).unwrap();
    let why = refused(&path, Existing::PutAside);
    assert!(why.contains("another controller uses the data folder"), "{why}");
    drop(open);
    assert_eq!(names(), before);

    restore(&path, &data, Existing::PutAside).unwrap();
    let aside = names().into_iter().find(|n| n.to_string_lossy().starts_with("replaced-"));
    assert!(data.join(aside.unwrap()).join(STORE).exists());
}
