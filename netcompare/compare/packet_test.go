package compare

import (
	"bytes"
	"net/netip"
	"testing"
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func read(s seg) packet {
	b := s.frame()
	head := 4
	if s.vnet > 0 {
		head = 8 + s.vnet
	}
	var p packet
	p.parse(0, b[head:])
	return p
}

func TestParse(t *testing.T) {
	v4 := seg{src: ap("10.0.0.1:80"), dst: ap("10.0.0.2:4000"), proto: protoTCP, seq: 5, ack: 6, flags: flagACK, body: []byte("hello")}
	with := func(change func(*seg)) seg {
		s := v4
		change(&s)
		return s
	}
	v6 := with(func(s *seg) { s.src, s.dst = ap("[fd00::1]:80"), ap("[fd00::2]:4000") })
	for name, c := range map[string]struct {
		seg  seg
		kind int
		body string
		key  key
	}{
		"tcp":           {v4, kindTCP, "hello", key{proto: protoTCP, sport: 80, dport: 4000}},
		"padding":       {with(func(s *seg) { s.padding = 9 }), kindTCP, "hello", key{proto: protoTCP, sport: 80, dport: 4000}},
		"virtio":        {with(func(s *seg) { s.vnet = 12 }), kindTCP, "hello", key{proto: protoTCP, sport: 80, dport: 4000}},
		"options":       {with(func(s *seg) { s.opts = make([]byte, 12) }), kindTCP, "hello", key{proto: protoTCP, sport: 80, dport: 4000}},
		"vlan":          {with(func(s *seg) { s.vlan = 7 }), kindTCP, "hello", key{proto: protoTCP, sport: 80, dport: 4000, vlan: 0x8007}},
		"tcp6":          {v6, kindTCP, "hello", key{v6: true, proto: protoTCP, sport: 80, dport: 4000}},
		"udp":           {with(func(s *seg) { s.proto = protoUDP }), kindDatagram, "hello", key{proto: protoUDP, sport: 80, dport: 4000}},
		"icmp":          {with(func(s *seg) { s.proto = protoICMP }), kindDatagram, "hello", key{proto: protoICMP}},
		"gre":           {with(func(s *seg) { s.proto = 47 }), kindDatagram, "hello", key{proto: 47}},
		"igmp":          {with(func(s *seg) { s.proto = protoIGMP }), kindFree, "", key{proto: protoIGMP}},
		"arp":           {with(func(s *seg) { s.ether = 0x806 }), kindFree, "", key{}},
		"neighbour":     {with(func(s *seg) { *s = v6; s.proto, s.body = protoICMPv6, []byte{135, 0} }), kindFree, "", key{v6: true, proto: protoICMPv6}},
		"echo6":         {with(func(s *seg) { *s = v6; s.proto, s.body = protoICMPv6, []byte{129, 0} }), kindDatagram, "\x81\x00", key{v6: true, proto: protoICMPv6}},
		"last fragment": {with(func(s *seg) { s.proto, s.frag = 47, 8 }), kindDatagram, "hello", key{proto: 47, fragment: true}},
		"extension": {with(func(s *seg) { *s = v6; s.next = []byte{protoDest, protoTCP, 0, 0, 0, 0, 0, 0, 0} }), kindTCP, "hello",
			key{v6: true, proto: protoTCP, sport: 80, dport: 4000}},
		"whole fragment6": {with(func(s *seg) { *s = v6; s.next = []byte{protoFragment, protoTCP, 0, 0, 0, 1, 2, 3, 4} }), kindTCP, "hello",
			key{v6: true, proto: protoTCP, sport: 80, dport: 4000}},
		"fragment6": {with(func(s *seg) { *s = v6; s.proto, s.next = 47, []byte{protoFragment, 47, 0, 0, 9, 1, 2, 3, 4} }), kindDatagram, "hello",
			key{v6: true, proto: 47, fragment: true}},
	} {
		p := read(c.seg)
		if k := p.key; c.key.sport != 0 || c.key.fragment || c.key.proto != 0 {
			src, dst := k.addrs()
			if src != c.seg.src.Addr() || dst != c.seg.dst.Addr() {
				t.Errorf("%s: from %v to %v", name, src, dst)
			}
			p.key.src, p.key.dst = [16]byte{}, [16]byte{}
		}
		if p.kind != c.kind || string(p.body) != c.body || p.key != c.key {
			t.Errorf("%s: kind %d, %q, %+v", name, p.kind, p.body, p.key)
		}
		if p.kind == kindTCP && (p.seq != 5 || p.ack != 6 || p.flags != flagACK || p.end() != 10) {
			t.Errorf("%s: %+v", name, p)
		}
	}
	whole := with(func(s *seg) { s.brokenLength = true })
	if p := read(whole); p.key.proto != protoBroken || !bytes.Equal(p.body, whole.frame()[4:]) {
		t.Errorf("what can't be read is not compared as a whole: %+v", p.key)
	}
}

func TestOffer(t *testing.T) {
	plain := []byte{2, 4, 5, 180, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7}
	later := bytes.Clone(plain)
	later[9] = 99 // the time
	if !sameOptions(plain, later) {
		t.Error("SYNs that differ by their time only are different")
	}
	for i, v := range map[int]byte{2: 4, 19: 8, 4: 1} {
		other := bytes.Clone(plain)
		other[i] = v
		if sameOptions(plain, other) {
			t.Errorf("option byte %d makes no difference", i)
		}
	}
}

func TestRules(t *testing.T) {
	p := read(seg{src: ap("10.0.0.1:123"), dst: ap("10.0.9.2:4000"), proto: protoUDP})
	q := read(seg{src: ap("[fd00::1]:80"), dst: ap("[fd00::2]:4000"), proto: protoTCP})
	for _, c := range []struct {
		rules []Rule
		p, q  bool
	}{
		{nil, false, false},
		{[]Rule{{Pass: true}}, true, true},
		{[]Rule{{Protocol: "udp", Pass: true}}, true, false},
		{[]Rule{{Protocol: "udp", Guest: 123, Pass: true}}, true, false},
		{[]Rule{{Protocol: "udp", Guest: 124, Pass: true}}, false, false},
		{[]Rule{{Protocol: "tcp", RemotePort: 4000, Pass: true}}, false, true},
		{[]Rule{{Remote: netip.MustParsePrefix("10.0.0.0/16"), Pass: true}}, true, false},
		{[]Rule{{Remote: netip.MustParsePrefix("fd00::/64"), Pass: true}}, false, true},
		{[]Rule{{Protocol: "udp"}, {Pass: true}}, false, true},
	} {
		if got := passes(c.rules, &p.key); got != c.p {
			t.Errorf("%+v: udp passes: %v", c.rules, got)
		}
		if got := passes(c.rules, &q.key); got != c.q {
			t.Errorf("%+v: tcp passes: %v", c.rules, got)
		}
	}
	for _, r := range []Rule{{Protocol: "sctp"}, {Guest: 5}, {Protocol: "icmp", RemotePort: 1}} {
		if r.Check() == nil {
			t.Errorf("%+v is taken", r)
		}
	}
	if err := (Rule{Protocol: "tcp", Guest: 22, Pass: true}).Check(); err != nil {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []seg{
		{src: ap("10.0.0.1:80"), dst: ap("10.0.0.2:4000"), proto: protoTCP, flags: flagACK, body: []byte("x")},
		{src: ap("[fd00::1]:80"), dst: ap("[fd00::2]:4000"), proto: protoUDP, next: []byte{protoHop, protoUDP, 0, 0, 0, 0, 0, 0, 0}},
		{src: ap("10.0.0.1:80"), dst: ap("10.0.0.2:4000"), proto: protoICMP, vlan: 9, frag: 0x2000},
	} {
		f.Add(s.frame()[4:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var p, q packet
		p.parse(1, b)
		q.parse(1, bytes.Clone(b))
		if p.key != q.key || p.kind != q.kind || !bytes.Equal(p.body, q.body) {
			t.Error("the same frame is read in two ways")
		}
		if p.kind == kindTCP && len(p.opts) > 40 {
			t.Errorf("%d bytes of options", len(p.opts))
		}
		offer(p.opts)
	})
}
