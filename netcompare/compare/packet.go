package compare

import (
	"encoding/binary"
	"net/netip"
)

// How a packet is compared.
const (
	kindFree     = iota // not at all
	kindTCP             // as a part of a stream
	kindDatagram        // by its body
)

// Ethernet types and IP protocols that are looked into.
const (
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
	etherVLAN = 0x8100
	etherQinQ = 0x88a8

	protoHop      = 0
	protoICMP     = 1
	protoIGMP     = 2
	protoTCP      = 6
	protoUDP      = 17
	protoRouting  = 43
	protoFragment = 44
	protoAH       = 51
	protoICMPv6   = 58
	protoDest     = 60
	protoBroken   = 255 // reserved by IANA: our mark for what can't be read
)

// TCP flags.
const (
	flagFIN = 1 << iota
	flagSYN
	flagRST
	flagPSH
	flagACK
)

// key names a flow as the guest sends it. IPv4 addresses are in the first four bytes.
type key struct {
	src, dst     [16]byte
	sport, dport uint16
	vlan         uint16
	proto        uint8
	nic          uint8
	v6           bool
	fragment     bool
}

func (k *key) addrs() (src, dst netip.Addr) {
	if k.v6 {
		return netip.AddrFrom16(k.src), netip.AddrFrom16(k.dst)
	}
	return netip.AddrFrom4([4]byte(k.src[:4])), netip.AddrFrom4([4]byte(k.dst[:4]))
}

// packet is what was read of a frame. body is what is compared; it aliases the frame.
type packet struct {
	kind     int
	key      key
	body     []byte
	opts     []byte // TCP options
	seq, ack uint32
	aux      uint32 // fragment's offset, ICMP's nothing: compared like the body
	flags    uint8
}

// end is the position after the packet's last byte; SYN and FIN count as one.
func (p *packet) end() uint32 {
	n := uint32(len(p.body)) //nolint:gosec // a frame has less than 70 kB
	if p.flags&flagSYN != 0 {
		n++
	}
	if p.flags&flagFIN != 0 {
		n++
	}
	return p.seq + n
}

// parse reads an Ethernet frame without its virtio-net header. It never fails: what it can't make sense of is compared
// as a whole.
func (p *packet) parse(nic uint8, frame []byte) {
	*p = packet{key: key{nic: nic}}
	if len(frame) < 14 {
		p.broken(frame)
		return
	}
	ether, rest := binary.BigEndian.Uint16(frame[12:]), frame[14:]
	for tags := 0; ether == etherVLAN || ether == etherQinQ; tags++ {
		if len(rest) < 4 || tags == 2 {
			p.broken(frame)
			return
		}
		p.key.vlan = p.key.vlan<<4 ^ binary.BigEndian.Uint16(rest)&0x0fff | 0x8000
		ether, rest = binary.BigEndian.Uint16(rest[2:]), rest[4:]
	}
	switch ether {
	case etherIPv4:
		p.ipv4(rest, frame)
	case etherIPv6:
		p.ipv6(rest, frame)
	default:
		p.kind = kindFree
	}
}

func (p *packet) broken(frame []byte) {
	p.kind, p.body = kindDatagram, frame
	p.key = key{nic: p.key.nic, proto: protoBroken}
}

func (p *packet) ipv4(b, frame []byte) {
	if len(b) < 20 {
		p.broken(frame)
		return
	}
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if total == 0 { // more than 64 KiB, to be segmented by the device
		total = len(b)
	}
	if b[0]>>4 != 4 || header < 20 || total < header || total > len(b) {
		p.broken(frame)
		return
	}
	p.key.proto = b[9]
	copy(p.key.src[:], b[12:16])
	copy(p.key.dst[:], b[16:20])
	if frag := binary.BigEndian.Uint16(b[6:]); frag&0x3fff != 0 {
		p.piece(uint32(frag&0x3fff), b[header:total])
		return
	}
	p.transport(b[9], b[header:total], frame)
}

func (p *packet) ipv6(b, frame []byte) {
	if len(b) < 40 || b[0]>>4 != 6 {
		p.broken(frame)
		return
	}
	next, total := b[6], int(binary.BigEndian.Uint16(b[4:]))
	if total == 0 {
		total = len(b) - 40
	}
	if total > len(b)-40 {
		p.broken(frame)
		return
	}
	p.key.v6 = true
	copy(p.key.src[:], b[8:24])
	copy(p.key.dst[:], b[24:40])
	rest := b[40 : 40+total]
	for {
		size := 0
		switch next {
		case protoHop, protoRouting, protoDest:
			if len(rest) >= 8 {
				size = int(rest[1])*8 + 8
			}
		case protoAH:
			if len(rest) >= 8 {
				size = int(rest[1])*4 + 8
			}
		case protoFragment:
			if len(rest) < 8 {
				p.broken(frame)
				return
			}
			p.key.proto = rest[0]
			if frag := binary.BigEndian.Uint16(rest[2:]) &^ 6; frag != 0 {
				p.piece(uint32(frag), rest[8:])
				return
			}
			size = 8 // all of it in one piece
		default:
			p.key.proto = next
			p.transport(next, rest, frame)
			return
		}
		if size == 0 || size > len(rest) {
			p.broken(frame)
			return
		}
		next, rest = rest[0], rest[size:]
	}
}

// piece is a fragment: compared by itself, with its place.
func (p *packet) piece(place uint32, b []byte) {
	p.kind, p.body, p.aux = kindDatagram, b, place
	p.key.fragment = true
}

func (p *packet) transport(proto uint8, b, frame []byte) {
	switch proto {
	case protoTCP:
		if len(b) < 20 {
			p.broken(frame)
			return
		}
		header := int(b[12]>>4) * 4
		if header < 20 || header > len(b) {
			p.broken(frame)
			return
		}
		p.kind, p.body, p.opts = kindTCP, b[header:], b[20:header]
		p.key.sport, p.key.dport = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		p.seq, p.ack, p.flags = binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:]), b[13]
	case protoUDP:
		if len(b) < 8 {
			p.broken(frame)
			return
		}
		p.kind, p.body = kindDatagram, b[8:] // without the checksum, which the device may still have to fill in
		p.key.sport, p.key.dport = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	case protoIGMP:
		p.kind = kindFree // membership reports come when they like
	case protoICMPv6:
		if len(b) > 0 && (b[0] >= 130 && b[0] <= 137 || b[0] == 143) {
			p.kind = kindFree // multicast listeners and neighbour discovery, IPv6's ARP
			return
		}
		p.kind, p.body = kindDatagram, b
	default:
		p.kind, p.body = kindDatagram, b
	}
}

// sameOptions compares what two SYNs offer: all but the time.
func sameOptions(a, b []byte) bool {
	oa, ok := offer(a)
	ob, okb := offer(b)
	return ok == okb && oa == ob
}

// offer is what a SYN's options mean for the connection: largest segment, window's scale, and what is permitted.
func offer(o []byte) (v struct {
	mss   uint16
	scale uint8
	has   uint8
}, ok bool) {
	for len(o) > 0 {
		if o[0] == 0 {
			return v, true
		}
		if o[0] == 1 {
			o = o[1:]
			continue
		}
		if len(o) < 2 || int(o[1]) < 2 || int(o[1]) > len(o) {
			return v, false
		}
		switch size := o[1]; {
		case o[0] == 2 && size == 4:
			v.mss = binary.BigEndian.Uint16(o[2:])
		case o[0] == 3 && size == 3:
			v.scale = o[2]
			v.has |= 1
		case o[0] == 4:
			v.has |= 2
		case o[0] == 8:
			v.has |= 4
		}
		o = o[o[1]:]
	}
	return v, true
}
