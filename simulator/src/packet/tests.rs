use super::*;

const DEFAULTS: Defaults = Defaults { source: [2, 0, 0, 0, 0, 7], destination: [2, 0, 0, 0, 0, 0xfe] };

/// Lines as the printer writes them.
const CANONICAL: &[&str] = &[
    "ipv4 10.0.0.7 > 10.96.0.10 / tcp 40000 > 80 syn",
    "ipv4 10.0.0.7 > 10.96.0.10 ttl 63 tos 16 id 7 df / tcp 40000 > 80 syn ack seq 5 ack-no 6 window 1 / payload 300",
    "ipv6 fd00::1 > fd00::2 hop 1 / udp 1000 > 53 / payload 20",
    "ipv4 10.0.0.7 > 10.0.0.8 / udp 1 > 2 len 4 checksum 0x0000",
    "ipv4 10.0.0.7 > 10.0.0.8 / sctp 1 > 2 tag 3 / chunk init",
    "ipv4 10.0.0.7 > 10.0.0.8 / icmp echo id 7 seq 1 / zeros 8",
    "ipv4 10.0.0.8 > 10.0.0.7 / icmp unreachable frag-needed mtu 1400 / ipv4 10.0.0.7 > 10.0.0.8 / udp 5 > 6 / payload 3",
    "ipv6 fd00::2 > fd00::1 / icmp6 packet-too-big mtu 1400 / ipv6 fd00::1 > fd00::2 / tcp 1 > 2 ack",
    "ipv6 fd00::7 > ff02::1:ff00:1 hop 255 / icmp6 ns fd00::1 link 02:00:00:00:00:07",
    "ipv6 fd00::1 > fd00::7 hop 255 / icmp6 na fd00::1 router solicited override link 02:00:00:00:00:fe",
    "ipv6 fe80::1 > ff02::2 hop 255 / icmp6 rs",
    "arp request 10.0.0.7 > 10.0.0.1",
    "arp reply 10.0.0.1 > 10.0.0.7 sender 02:00:00:00:00:aa",
    "ipv4 10.0.0.7 > 10.0.0.8 / frag id 5 offset 0 more / udp 1 > 2 / payload 16",
    "ipv4 10.0.0.7 > 10.0.0.8 proto udp / frag id 5 offset 24 / payload 16",
    "ipv6 fd00::1 > fd00::2 / frag id 5 offset 0 more / tcp 1 > 2 syn",
    "ipv6 fd00::1 > fd00::2 / frag id 5 offset 1448 next tcp / payload 3",
    "ipv6 fd00::1 > fd00::2 / hop-by-hop / dest-opts words 3 / routing / auth / tcp 1 > 2 rst",
    "ipv4 10.0.0.7 > 10.0.0.8 total-len 10 / tcp 1 > 2 syn",
    "ipv4 10.0.0.7 > 10.0.0.8 version 5 ihl 4 / tcp 1 > 2 syn",
    "ipv4 10.0.0.7 > 10.0.0.8 options 01010101 / tcp 1 > 2 syn options 0204ffff",
    "eth 02:00:00:00:00:01 > 02:00:00:00:00:02 / ipv4 1.2.3.4 > 5.6.7.8 proto gre / hex 0102",
    "eth type 0x88cc / hex 0102",
    "ipv4 10.0.0.7 > 10.0.0.8 / udp 1 > 2 / trailer 0000",
    "hex 0102030405",
];

#[test]
fn lines_come_back_from_bytes() {
    for line in CANONICAL {
        let layers = parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(text(&layers), *line, "from layers");
        let bytes = to_bytes(&layers, &DEFAULTS);
        assert_eq!(describe(&bytes, &DEFAULTS), *line, "from bytes {bytes:02x?}");
    }
}

#[test]
fn lengths_and_checksums_are_those_of_a_known_packet() {
    // A SYN as Linux sends it; checksums computed by its stack.
    let bytes =
        frame("ipv4 127.0.0.1 > 127.0.0.1 id 0x1c46 df / tcp 33344 > 8080 syn seq 1 window 64", &DEFAULTS).unwrap();
    assert_eq!(bytes[16..18], [0, 40]);
    // An IPv4 header with its checksum in place sums to zero.
    assert_eq!(internet_checksum(&[&bytes[14..34]]), 0);
    let pseudo = [127, 0, 0, 1, 127, 0, 0, 1, 0, 6, 0, 20];
    assert_eq!(internet_checksum(&[&pseudo, &bytes[34..]]), 0);
}

#[test]
fn the_end_can_be_cut_off() {
    let bytes = frame("ipv4 10.0.0.7 > 10.0.0.8 / tcp 1 > 2 syn / cut 40", &DEFAULTS).unwrap();
    assert_eq!(bytes.len(), 40);
    assert_eq!(bytes[16..18], [0, 40]);
}

#[test]
fn errors_name_the_layer_the_word_and_what_is_known() {
    for (line, expected) in [
        ("ipv4 10.0.0.7 > 10.0.0.8 / tcp 1 > 2 sin", "packet layer `tcp 1 > 2 sin`: `sin` is not known here"),
        ("ipv4 10.0.0.300 > 1.2.3.4", "`10.0.0.300` is not an IPv4 address"),
        ("ipv5 1 > 2", "`ipv5` is not known here; known: eth, arp"),
        ("udp 1 > 65536", "`65536` is not a destination port"),
        ("frag offset 3", "multiple of 8"),
        ("hex 123", "not hexadecimal"),
        ("", "a kind of layer is missing"),
        ("payload 4 5", "`5` is too much"),
    ] {
        let error = parse(line).unwrap_err().to_string();
        assert!(error.contains(expected), "{line}: {error}");
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end).unwrap()).unwrap()
    }
}

#[test]
fn every_frame_comes_back_from_its_text() {
    let seed = 7;
    let mut random = Random(seed);
    for round in 0..20_000 {
        let line = CANONICAL[random.below(CANONICAL.len())];
        let mut bytes = frame(line, &DEFAULTS).unwrap();
        for _ in 0..random.below(4) {
            let at = random.below(bytes.len());
            bytes[at] = u8::try_from(random.next() & 0xff).unwrap();
        }
        if random.below(4) == 0 {
            bytes.truncate(random.below(bytes.len()) + 1);
        }
        if random.below(8) == 0 {
            bytes.extend([0xaa; 3]);
        }
        let layers = from_bytes(&bytes, &DEFAULTS);
        assert_eq!(to_bytes(&layers, &DEFAULTS), bytes, "seed {seed} round {round}: {layers:?}");
        let line = text(&layers);
        assert_eq!(parse(&line).as_ref(), Ok(&layers), "seed {seed} round {round}: {line}");
    }
}
