package libvirt

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// wire is the connection as go-libvirt sees it. It passes libvirt's packets on one by one, and completes those that go-libvirt would drop: an event of
// QEMU's without data (STOP and RESUME have none) ends with the word that says so, where go-libvirt expects the data's length to follow.
//
// And it keeps an end of the connection from go-libvirt while that opens it, unless it waits for an answer: go-libvirt writes a field when it has opened a
// connection, without a lock, that another goroutine of its own reads when the connection has ended.
type wire struct {
	net.Conn
	in   *bufio.Reader
	rest []byte // of a packet

	unanswered atomic.Int32  // calls
	opened     chan struct{} // closed by the one who opens, whether it went well or not
	written    chan struct{} // closed at a call after the end
	ended      atomic.Bool
	once       sync.Once
}

func newWire(c net.Conn) *wire {
	return &wire{Conn: c, in: bufio.NewReader(c), opened: make(chan struct{}), written: make(chan struct{})}
}

// Of libvirt's protocol.
const (
	headerLen    = 28       // length, program, version, procedure, type, serial, status: 4 bytes each
	maxPacket    = 32 << 20 // libvirt's own limit, VIR_NET_MESSAGE_MAX
	qemuProgram  = 0x20008087
	monitorEvent = 6 // QEMU_PROC_DOMAIN_MONITOR_EVENT
	typeReply    = 1
	typeMessage  = 2
)

// ErrProtocol is returned for bytes that can't be libvirt's.
var ErrProtocol = errors.New("not libvirt's protocol")

// Read implements net.Conn. It is called by one goroutine.
func (w *wire) Read(p []byte) (int, error) {
	if len(w.rest) == 0 {
		packet, err := readPacket(w.in)
		if err != nil {
			w.awaitOpened()
			return 0, err
		}
		if binary.BigEndian.Uint32(packet[16:]) == typeReply {
			w.unanswered.Add(-1)
		}
		w.rest = completeEvent(packet)
	}
	n := copy(p, w.rest)
	w.rest = w.rest[n:]
	return n, nil
}

// awaitOpened returns when the end can be told.
func (w *wire) awaitOpened() {
	w.ended.Store(true)
	if w.unanswered.Load() > 0 {
		return
	}
	select {
	case <-w.opened:
	case <-w.written:
	}
}

// Write implements net.Conn. go-libvirt writes a call at once.
func (w *wire) Write(p []byte) (int, error) {
	w.unanswered.Add(1)
	if w.ended.Load() { // nobody will answer
		w.once.Do(func() { close(w.written) })
	}
	return w.Conn.Write(p)
}

func readPacket(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < headerLen || n > maxPacket {
		return nil, fmt.Errorf("%w: a packet of %d bytes", ErrProtocol, n)
	}
	packet := make([]byte, n)
	copy(packet, head[:])
	_, err := io.ReadFull(r, packet[4:])
	return packet, err
}

// completeEvent adds an empty text where an event has none. Other packets are returned as they are.
func completeEvent(packet []byte) []byte {
	word := func(i int) uint32 { return binary.BigEndian.Uint32(packet[i:]) }
	if word(4) != qemuProgram || word(12) != monitorEvent || word(16) != typeMessage {
		return packet
	}
	// Callback, domain (name, UUID, number), event's name, seconds, microseconds, and whether there is data.
	p := packet[headerLen:]
	skip := func(n int) bool {
		if n < 0 || len(p) < n {
			return false
		}
		p = p[n:]
		return true
	}
	text := func() bool {
		if len(p) < 4 {
			return false
		}
		n := int(binary.BigEndian.Uint32(p))
		return n <= maxPacket && skip(4+(n+3)&^3)
	}
	if !skip(4) || !text() || !skip(16+4) || !text() || !skip(8+4) || len(p) != 4 || binary.BigEndian.Uint32(p) != 0 {
		return packet
	}
	out := append(packet[:len(packet):len(packet)], 0, 0, 0, 0)
	binary.BigEndian.PutUint32(out, uint32(len(out)))
	return out
}
