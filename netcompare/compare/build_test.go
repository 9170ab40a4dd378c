package compare

import (
	"encoding/binary"
	"net/netip"
)

// seg is a TCP segment or datagram that tests make frames of.
type seg struct {
	src, dst     netip.AddrPort
	proto        uint8
	seq, ack     uint32
	flags        uint8
	body         []byte
	opts         []byte
	vlan         uint16
	frag         uint16 // IPv4: flags and offset
	ether        uint16 // 0 is by the addresses
	ipid         uint16
	sum          uint16
	next         []byte // IPv6: extension headers, the first one's type before them
	padding      int
	vnet         int // bytes of virtio-net header
	brokenLength bool
}

func (s seg) transport() []byte {
	var b []byte
	switch s.proto {
	case protoTCP:
		b = make([]byte, 20, 20+len(s.opts)+len(s.body))
		binary.BigEndian.PutUint16(b, s.src.Port())
		binary.BigEndian.PutUint16(b[2:], s.dst.Port())
		binary.BigEndian.PutUint32(b[4:], s.seq)
		binary.BigEndian.PutUint32(b[8:], s.ack)
		b[12], b[13] = byte((20+len(s.opts))/4)<<4, s.flags
		binary.BigEndian.PutUint16(b[16:], s.sum)
		b = append(b, s.opts...)
	case protoUDP:
		b = make([]byte, 8, 8+len(s.body))
		binary.BigEndian.PutUint16(b, s.src.Port())
		binary.BigEndian.PutUint16(b[2:], s.dst.Port())
		binary.BigEndian.PutUint16(b[6:], s.sum)
	}
	return append(b, s.body...)
}

// frame is the segment as a redirector sends it.
func (s seg) frame() []byte {
	eth := make([]byte, 12, 128+len(s.body))
	if s.vlan != 0 {
		eth = binary.BigEndian.AppendUint16(eth, etherVLAN)
		eth = binary.BigEndian.AppendUint16(eth, s.vlan)
	}
	t := s.transport()
	switch {
	case s.ether != 0:
		eth = binary.BigEndian.AppendUint16(eth, s.ether)
		eth = append(eth, s.body...)
	case s.src.Addr().Is4():
		eth = binary.BigEndian.AppendUint16(eth, etherIPv4)
		ip := make([]byte, 20)
		ip[0], ip[8], ip[9] = 0x45, 64, s.proto
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(t)))
		binary.BigEndian.PutUint16(ip[4:], s.ipid)
		binary.BigEndian.PutUint16(ip[6:], s.frag)
		if s.brokenLength {
			binary.BigEndian.PutUint16(ip[2:], 60000)
		}
		copy(ip[12:], s.src.Addr().AsSlice())
		copy(ip[16:], s.dst.Addr().AsSlice())
		eth = append(append(eth, ip...), t...)
	default:
		eth = binary.BigEndian.AppendUint16(eth, etherIPv6)
		ip := make([]byte, 40)
		ip[0], ip[6], ip[7] = 0x60, s.proto, 64
		ext := s.next
		if len(ext) > 0 {
			ip[6], ext = ext[0], ext[1:]
		}
		binary.BigEndian.PutUint16(ip[4:], uint16(len(ext)+len(t)))
		copy(ip[8:], s.src.Addr().AsSlice())
		copy(ip[24:], s.dst.Addr().AsSlice())
		eth = append(append(append(eth, ip...), ext...), t...)
	}
	eth = append(eth, make([]byte, s.padding)...)
	b := binary.BigEndian.AppendUint32(nil, uint32(s.vnet+len(eth)))
	if s.vnet > 0 {
		b = binary.BigEndian.AppendUint32(b, uint32(s.vnet))
		b = append(b, make([]byte, s.vnet)...)
	}
	return append(b, eth...)
}

// put copies a frame into a chunk, as reading would.
func (s seg) put(p *Pool) Frame {
	b := s.frame()
	c := p.Get()
	head := 4
	if s.vnet > 0 {
		head = 8 + s.vnet
	}
	n := copy(c.Data, b)
	return Frame{All: c.Data[:n], Head: head, Chunk: c}
}
