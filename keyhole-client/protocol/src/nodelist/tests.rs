//! Tables of lists.

use super::*;
use alloc::format;
use alloc::vec;

fn names(list: &str) -> Vec<String> {
    match expand(list) {
        Ok(names) => names,
        Err(error) => panic!("{list:?}: {error}"),
    }
}

#[test]
fn lists_are_expanded_as_slurm_expands_them() {
    for (list, expected) in [
        ("c0", "c0"),
        ("c0,c1", "c0 c1"),
        ("login.hpc.example", "login.hpc.example"),
        ("n[1-3]", "n1 n2 n3"),
        ("n[3,1]", "n3 n1"),
        ("n[1,3-5,07]", "n1 n3 n4 n5 n07"),
        ("n[008-011]", "n008 n009 n010 n011"),
        ("n[9-10]", "n9 n10"),
        ("n[08-10]", "n08 n09 n10"),
        ("n[1,02,003]", "n1 n02 n003"),
        ("n[1-010]", "n1 n2 n3 n4 n5 n6 n7 n8 n9 n10"),
        ("n[01-1]", "n01"),
        ("n[0-0]", "n0"),
        ("n[5]", "n5"),
        ("n0[9-10]", "n09 n010"),
        ("n1,n[2-3],m", "n1 n2 n3 m"),
        ("r[1-2]n[01-03]", "r1n01 r1n02 r1n03 r2n01 r2n02 r2n03"),
        ("r[3,1]n[2,1]", "r3n2 r3n1 r1n2 r1n1"),
        ("r[1,02]n[9-10]", "r1n9 r1n10 r02n9 r02n10"),
        ("a[1-2],b[1-2]c[3-4]", "a1 a2 b1c3 b1c4 b2c3 b2c4"),
        ("n[1]2[3]", "n123"),
        ("n[1-2][3-4][5-6]", "n135 n136 n235 n236 n145 n146 n245 n246"),
        ("n[1-2]-ib", "n1-ib n2-ib"),
        ("n[1-2]x[3-4].hpc,z", "n1x3.hpc n1x4.hpc n2x3.hpc n2x4.hpc z"),
        ("n[1,1],n1", "n1 n1 n1"),
        ("rack_[1-2]", "rack_1 rack_2"),
    ] {
        assert_eq!(names(list).join(" "), expected, "{list}");
    }
}

#[test]
fn broken_lists_are_refused_where_they_break() {
    let long_label = format!("n[1-2]{}", "x".repeat(MAX_LABEL));
    let many_digits = format!("n[{}1]", "0".repeat(MAX_NAME));
    let many_sets = "[1]".repeat(MAX_NAME + 2);
    for (list, position, what) in [
        ("", 0, "a node name is missing"),
        (",", 0, "a node name is missing"),
        (",n1", 0, "a node name is missing"),
        ("n1,,n2", 3, "a node name is missing"),
        ("n1,", 3, "a node name is missing"),
        ("n1, n2", 3, "a node name is missing"),
        ("n 1", 1, "this cannot stand in a node list"),
        ("n1\n", 2, "this cannot stand in a node list"),
        ("n1\0", 2, "this cannot stand in a node list"),
        ("n$(x)", 1, "this cannot stand in a node list"),
        ("nä", 1, "this cannot stand in a node list"),
        ("n1-3]", 4, "this cannot stand in a node list"),
        ("n[1-3", 5, "expected `,` or `]`"),
        ("n[", 2, "expected a number"),
        ("n[]", 2, "expected a number"),
        ("n[a]", 2, "expected a number"),
        ("n[1-2,]", 6, "expected a number"),
        ("n[-2]", 2, "expected a number"),
        ("n[1--2]", 4, "expected a number"),
        ("n[1-]", 4, "expected a number"),
        ("n[[1-2]]", 2, "expected a number"),
        ("n[1[2]]", 3, "expected `,` or `]`"),
        ("n[1-2-3]", 5, "expected `,` or `]`"),
        ("n[1 - 2]", 3, "expected `,` or `]`"),
        ("n[1-2]]", 6, "this cannot stand in a node list"),
        ("n[3-1]", 2, "this range is reversed"),
        ("n[1-2,10-9]", 6, "this range is reversed"),
        ("n[99999999999999999999]", 2, "this number is too large"),
        (&many_digits, 2, "this number has too many digits"),
        (&many_sets, 3 * (MAX_NAME + 1), "this name has too many parts"),
        ("a,-n[1-2]", 2, "this gives no host name"),
        ("n[1-2]-", 0, "this gives no host name"),
        ("n..[1-2]", 0, "this gives no host name"),
        ("[1-3]", 0, "this gives no host name"),
        ("10.0.0.[1-3]", 0, "this gives no host name"),
        (&long_label, 0, "this gives no host name"),
        ("n[1-4097]", 0, "too many nodes, at most 4096 are allowed"),
        ("a,n[1-4096]", 2, "too many nodes, at most 4096 are allowed"),
        ("n[0-18446744073709551615]", 0, "too many nodes, at most 4096 are allowed"),
        ("n[0-18446744073709551615,0-18446744073709551615]", 0, "too many nodes, at most 4096 are allowed"),
        ("n[0-99999][0-99999][0-99999][0-99999]", 0, "too many nodes, at most 4096 are allowed"),
    ] {
        assert_eq!(expand(list), Err(NodeListError { position, what }), "{list:?}");
    }
}

#[test]
fn as_many_nodes_as_allowed_are_expanded() {
    for list in ["n[1-4096]", "n[0-63]x[0-63]", "n[0-15][0-15][0-15]", "n[1-4000],m[1-96]"] {
        assert_eq!(names(list).len(), MAX_NODES, "{list}");
    }
}

#[test]
fn a_list_of_too_many_single_numbers_is_refused() {
    let list = format!("n[{}]", vec!["1"; MAX_NODES + 1].join(","));
    assert!(expand(&list).is_err());
    let list = vec!["n"; MAX_NODES + 1].join(",");
    assert!(expand(&list).is_err());
    assert!(expand(&"n".repeat(MAX_BODY + 1)).is_err());
}

#[test]
fn host_names_are_told_from_other_texts() {
    let longest = [&"a".repeat(63), ".", &"b".repeat(63), ".", &"c".repeat(63), ".", &"d".repeat(61)].concat();
    for name in ["c0", "C0", "c0-ib0", "node_1", "n1.hpc.example", "0x", "1a", "a.1", "x--y", &longest] {
        let expected = name != "0x";
        assert_eq!(is_host_name(name), expected, "{name:?}");
    }
    let too_long = [&longest, "d"].concat();
    let long_label = "a".repeat(64);
    for name in [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "-a",
        "a-",
        "a.-b",
        "a b",
        "a\n",
        "a/b",
        "a:1",
        "ä",
        "a;b",
        "$a",
        "5",
        "10.0.0.1",
        "0x7f.1",
        "0X7F000001",
        "127.1",
        &too_long,
        &long_label,
    ] {
        assert!(!is_host_name(name), "{name:?}");
    }
}
