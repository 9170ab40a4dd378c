package comparer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/netcompare/compare"
)

// frameMax is QEMU's NET_BUFSIZE and the lengths before it.
const frameMax = 4096 + 65536 + 8

var errFraming = errors.New("QEMU's framing can't be read")

// reader reads frames from a socket into chunks.
type reader struct {
	fd    int
	nic   uint8
	vnet  bool
	pool  *compare.Pool
	chunk *compare.Chunk
	r, w  int // what is read and not yet taken is chunk.Data[r:w]
}

// spins is how often the rest of a frame is looked for before the process sleeps. QEMU writes a frame in three pieces, a
// microsecond or two apart: each would wake the process.
const spins = 24

// read takes what the socket has, and a little later what was missing of the last frame. It says whether there may be more.
func (s *reader) read(frame func(compare.Frame)) (more bool, err error) {
	for range spins {
		if more, err = s.readOnce(frame); more || err != nil || s.r == s.w {
			break
		}
	}
	return more, err
}

func (s *reader) readOnce(frame func(compare.Frame)) (more bool, err error) {
	if s.chunk == nil {
		s.chunk = s.pool.Get()
	}
	if len(s.chunk.Data)-s.w < frameMax { // a frame never crosses a chunk's end: its beginning moves
		next := s.pool.Get()
		s.w = copy(next.Data, s.chunk.Data[s.r:s.w])
		s.chunk.Drop()
		s.chunk, s.r = next, 0
	}
	space := s.chunk.Data[s.w:]
	n, err := unix.Read(s.fd, space)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return false, nil
	case errors.Is(err, unix.EINTR):
		return true, nil
	case err != nil:
		return false, err
	case n == 0:
		return false, io.EOF
	}
	s.w += n
	for {
		buf := s.chunk.Data[s.r:s.w]
		head := 4
		if s.vnet {
			head = 8
		}
		if len(buf) < head {
			break
		}
		size, hdr := int(binary.BigEndian.Uint32(buf)), 0
		if s.vnet {
			hdr = int(binary.BigEndian.Uint32(buf[4:]))
		}
		if size > frameMax-8 || hdr > size {
			return false, fmt.Errorf("%w: %d bytes with a header of %d", errFraming, size, hdr)
		}
		if len(buf) < head+size {
			break
		}
		frame(compare.Frame{NIC: s.nic, All: buf[:head+size], Head: head + hdr, Chunk: s.chunk})
		s.r += head + size
	}
	return n == len(space), nil
}

// writer sends released frames. What the socket doesn't take waits.
type writer struct {
	fd      int
	queue   []piece
	first   int // of queue that is not sent yet
	bytes   int
	dropped uint64
}

type piece struct {
	b     []byte
	chunk *compare.Chunk
}

// outMax bounds what waits for a tap. A tap that takes nothing loses packets, as a network does.
const outMax = 16 << 20

func (o *writer) put(b []byte, c *compare.Chunk) {
	if o.bytes+len(b) > outMax {
		o.dropped++
		return
	}
	o.bytes += len(b)
	if n := len(o.queue); n > o.first {
		// Frames that lie behind each other go as one.
		if last := &o.queue[n-1]; last.chunk == c && cap(last.b) >= len(last.b)+len(b) && &last.b[:len(last.b)+1][len(last.b)] == &b[0] {
			last.b = last.b[:len(last.b)+len(b)]
			return
		}
	}
	c.Keep()
	o.queue = append(o.queue, piece{b, c})
}

// flush sends what the socket takes.
func (o *writer) flush(iov [][]byte) error {
	for o.first < len(o.queue) {
		iov = iov[:0]
		for _, p := range o.queue[o.first:min(len(o.queue), o.first+cap(iov))] {
			iov = append(iov, p.b)
		}
		n, err := unix.Writev(o.fd, iov)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if err != nil {
			return err
		}
		o.bytes -= n
		for n > 0 {
			p := &o.queue[o.first]
			if n < len(p.b) {
				p.b = p.b[n:]
				break
			}
			n -= len(p.b)
			p.chunk.Drop()
			*p = piece{}
			o.first++
		}
	}
	o.queue, o.first = o.queue[:0], 0
	return nil
}

// drop forgets what waits.
func (o *writer) drop() {
	for i := range o.queue[o.first:] {
		p := &o.queue[o.first+i]
		p.chunk.Drop()
		*p = piece{}
		o.dropped++
	}
	o.queue, o.first, o.bytes = o.queue[:0], 0, 0
}

func (o *writer) waiting() bool { return o.first < len(o.queue) }

// dial connects to a unix socket.
func dial(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("%s: %w", path, err)
	}
	// QEMU's main loop waits while a socket is full: give it room. More than the system allows is cut by it.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<20)
	return fd, unix.SetNonblock(fd, true)
}
