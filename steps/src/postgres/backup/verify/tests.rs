use std::io::Write;

use super::*;

const MIB: usize = 1 << 20;

fn expected() -> Expected {
    Expected { system: SystemId(77), size: SegmentSize::new(MIB as u64).expect("a valid size") }
}

fn segment(number: u64) -> (String, Vec<u8>) {
    let segment = Segment { timeline: 1, number };
    let mut bytes = vec![0; MIB];
    bytes[..2].copy_from_slice(&0xD110_u16.to_ne_bytes());
    bytes[2..4].copy_from_slice(&2_u16.to_ne_bytes());
    bytes[4..8].copy_from_slice(&1_u32.to_ne_bytes());
    bytes[8..16].copy_from_slice(&segment.start(expected().size).0.to_ne_bytes());
    bytes[24..32].copy_from_slice(&77_u64.to_ne_bytes());
    bytes[32..36].copy_from_slice(&(MIB as u32).to_ne_bytes());
    (segment.name(expected().size), bytes)
}

fn archive(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        archive.append_data(&mut header, name, &content[..]).expect("appends");
    }
    archive.into_inner().expect("ends")
}

fn members() -> Vec<(String, Vec<u8>)> {
    // The last one ends with as many zeros as an end mark has.
    vec![
        ("PG_VERSION".into(), b"15\n".to_vec()),
        ("base/1/2".into(), b"data".repeat(999)),
        ("zero".into(), vec![0; 4096]),
    ]
}

fn manifest(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let files: Vec<_> = members
        .iter()
        .map(|(path, content)| {
            serde_json::json!({"Path": path, "Size": content.len(), "Checksum-Algorithm": "SHA256",
                "Checksum": hex(&Sha256::digest(content))})
        })
        .collect();
    let ranges = serde_json::json!([{"Timeline": 1, "Start-LSN": "0/200028", "End-LSN": "0/400000"}]);
    let files = serde_json::Value::from(files);
    let body = format!(
        "{{\"PostgreSQL-Backup-Manifest-Version\": 1, \"Files\": {files}, \"WAL-Ranges\": {ranges},\n"
    );
    let checksum = hex(&Sha256::digest(&body));
    format!("{body}\"Manifest-Checksum\": \"{checksum}\"}}\n").into_bytes()
}

/// A whole backup, as `pg_basebackup` writes it.
fn backup() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let write = |name: &str, content: &[u8]| std::fs::write(dir.path().join(name), content).expect("writes");
    write("backup_manifest", &manifest(&members()));
    write("base.tar.zst", &zstd::encode_all(&archive(&members())[..], 1).expect("compresses"));
    write("pg_wal.tar", &archive(&[segment(2), segment(3)]));
    dir
}

fn check(dir: &tempfile::TempDir) -> Result<Verified, StepError> {
    verify(dir.path(), expected(), &Meter::silent())
}

/// Replaces the base archive and says what is found.
fn with_base(content: &[u8]) -> String {
    let dir = backup();
    std::fs::write(dir.path().join("base.tar.zst"), zstd::encode_all(content, 1).expect("compresses"))
        .expect("writes");
    let error = check(&dir).expect_err("must be found");
    assert_eq!(error.code, codes::LB1215);
    error.message
}

#[test]
fn a_whole_backup_is_described() {
    let dir = backup();
    let verified = check(&dir).expect("is whole");
    assert_eq!((verified.files, verified.data_bytes), (3, 3 + 3996 + 4096));
    let names: Vec<_> = verified.objects.iter().map(|object| object.name.as_str()).collect();
    assert_eq!(names, ["backup_manifest", "base.tar.zst", "pg_wal.tar"]);
    for object in &verified.objects {
        let content = std::fs::read(dir.path().join(&object.name)).expect("reads");
        assert_eq!((object.size, &object.sha256), (content.len() as u64, &hex(&Sha256::digest(&content))));
    }
}

#[test]
fn other_compressions_and_tablespaces_are_understood() {
    let dir = backup();
    std::fs::remove_file(dir.path().join("base.tar.zst")).expect("removes");
    let mut all = members();
    let moved = ("pg_tblspc/16400/PG_15/5/1".to_owned(), b"table".to_vec());
    all.push(moved.clone());
    std::fs::write(dir.path().join("backup_manifest"), manifest(&all)).expect("writes");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&archive(&members())).expect("compresses");
    std::fs::write(dir.path().join("base.tar.gz"), encoder.finish().expect("ends")).expect("writes");
    let space = archive(&[("PG_15/5/1".into(), moved.1)]);
    std::fs::write(dir.path().join("16400.tar"), space).expect("writes");
    assert_eq!(check(&dir).expect("is whole").files, 4);
    std::fs::remove_file(dir.path().join("16400.tar")).expect("removes");
    assert!(check(&dir).expect_err("lacks the tablespace").message.contains("pg_tblspc/16400"));
}

#[test]
fn an_archive_cut_short_is_found_wherever_it_was_cut() {
    let whole = archive(&members());
    // At the end of the last member, right before the end marks: what a lenient reader takes for whole.
    let message = with_base(&whole[..whole.len() - 1024]);
    assert!(message.contains("cut short"), "{message}");
    with_base(&whole[..whole.len() - 512]);
    // Between the members, with end marks put behind it.
    let cut = archive(&members()[..2]);
    assert!(with_base(&cut).contains("`zero`"));
    for at in [0, 1, 511, 512, 513, 1024, whole.len() / 2] {
        with_base(&whole[..at]);
    }
}

#[test]
fn a_stream_cut_short_is_found_at_any_length() {
    let dir = backup();
    let path = dir.path().join("base.tar.zst");
    let whole = std::fs::read(&path).expect("reads");
    for at in [0, 1, whole.len() / 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..at]).expect("writes");
        assert_eq!(check(&dir).expect_err("is cut").code, codes::LB1215, "{at}");
    }
}

#[test]
fn changed_and_foreign_files_are_found() {
    let mut changed = members();
    changed[1].1[7] ^= 1;
    assert!(with_base(&archive(&changed)).contains("base/1/2"));
    let mut extra = members();
    extra.push(("evil".into(), vec![]));
    assert!(with_base(&archive(&extra)).contains("evil"));
    let dir = backup();
    std::fs::write(dir.path().join("notes.txt"), b"").expect("writes");
    assert!(check(&dir).expect_err("is no part of it").message.contains("notes.txt"));
}

#[test]
fn missing_wal_is_found() {
    for segments in [vec![segment(2)], vec![segment(3)], vec![]] {
        let dir = backup();
        std::fs::write(dir.path().join("pg_wal.tar"), archive(&segments)).expect("writes");
        assert!(check(&dir).expect_err("lacks a segment").message.contains("segment"));
    }
    let dir = backup();
    std::fs::remove_file(dir.path().join("pg_wal.tar")).expect("removes");
    assert!(check(&dir).is_err());
    let dir = backup();
    std::fs::remove_file(dir.path().join("backup_manifest")).expect("removes");
    assert!(check(&dir).is_err());
}
