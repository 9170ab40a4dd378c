package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/internal/netns"
)

// maxFrames bounds what a sniffer remembers: 64 MB of times.
const maxFrames = 8 << 20

// A Sniffer remembers when the LAN got a frame of the guest's MAC address from a node's cable. What goes the other way on it, such as
// frames of the other node, is not counted, and neither is what is sent into a cable that is plugged out. It takes the kernel's own times.
type Sniffer struct {
	Node string

	file *os.File
	done chan struct{}

	mu    sync.Mutex
	times []int64  // wall clock, ns, rising
	kinds []uint16 // their Ethernet types
	err   error
	full  bool
}

// Sniff starts to watch a node's LAN cable at its far end. The caller must Close it.
func (t *Topology) Sniff(node string, mac net.HardwareAddr) (*Sniffer, error) {
	var file *os.File
	err := netns.Do(t.Client.Netns(), func() (err error) {
		file, err = packetSocket(lanOf(node), mac)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("watch the LAN cable of %s: %w", node, err)
	}
	s := &Sniffer{Node: node, file: file, done: make(chan struct{})}
	go s.read()
	return s, nil
}

func packetSocket(device string, mac net.HardwareAddr) (*os.File, error) {
	ifi, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	// Protocol 0 until it is bound: else it would collect from all interfaces, unfiltered, for a moment.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	filter := arrivingFrom(mac)
	err = errors.Join(
		os.NewSyscallError("filter", unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})),
		os.NewSyscallError("timestamps", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)),
		// Without the right to more it gets what the machine allows.
		bufferSize(fd, 8<<20),
		os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: ifi.Index})),
	)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "packet:"+device), nil
}

func bufferSize(fd, n int) error {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, n) == nil {
		return nil
	}
	return os.NewSyscallError("buffer", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, n))
}

func htons(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

// arrivingFrom is the classic BPF program "not sent by this host, source address mac"; it cuts what passes to the Ethernet header.
func arrivingFrom(mac net.HardwareAddr) []unix.SockFilter {
	const (
		loadWord, loadHalf, jumpEqual, ret = 0x20, 0x28, 0x15, 0x06

		packetType = 0xfffff000 + 4 // SKF_AD_OFF + SKF_AD_PKTTYPE
		outgoing   = 4              // PACKET_OUTGOING
	)
	return []unix.SockFilter{
		{Code: loadWord, K: packetType},
		{Code: jumpEqual, Jt: 5, K: outgoing},
		{Code: loadWord, K: 6},
		{Code: jumpEqual, Jf: 3, K: binary.BigEndian.Uint32(mac)},
		{Code: loadHalf, K: 10},
		{Code: jumpEqual, Jf: 1, K: uint32(binary.BigEndian.Uint16(mac[4:]))},
		{Code: ret, K: 14},
		{Code: ret, K: 0},
	}
}

func (s *Sniffer) read() {
	defer close(s.done)
	conn, err := s.file.SyscallConn()
	if err != nil {
		s.err = err
		return
	}
	frame, control := make([]byte, 64), make([]byte, 256)
	for {
		var at int64
		var readErr error
		err := conn.Read(func(fd uintptr) bool {
			at, readErr = recvTime(int(fd), frame, control)
			return !errors.Is(readErr, unix.EAGAIN)
		})
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case err != nil:
			s.fail(err)
			return
		case errors.Is(readErr, unix.ENETDOWN) || errors.Is(readErr, unix.EINTR):
			continue // said once when the cable is plugged out; the socket goes on when it is back
		case readErr != nil:
			s.fail(readErr)
			return
		}
		s.mu.Lock()
		if len(s.times) < maxFrames {
			s.times, s.kinds = append(s.times, at), append(s.kinds, binary.BigEndian.Uint16(frame[12:]))
		} else {
			s.full = true
		}
		s.mu.Unlock()
	}
}

func (s *Sniffer) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// recvTime takes one frame and returns when the kernel saw it.
func recvTime(fd int, frame, control []byte) (int64, error) {
	_, n, _, _, err := unix.Recvmsg(fd, frame, control, 0)
	if err != nil {
		return 0, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil {
		return 0, err
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= int(unsafe.Sizeof(unix.Timespec{})) {
			ts := (*unix.Timespec)(unsafe.Pointer(&m.Data[0]))
			return ts.Nano(), nil
		}
	}
	return 0, errors.New("a frame came without a time")
}

// Frames returns the times so far, in ns of the wall clock, and an error if some are missing.
func (s *Sniffer) Frames() ([]int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.err
	if s.full {
		err = errors.Join(err, fmt.Errorf("more than %d frames", maxFrames))
	}
	if dropped, statErr := s.dropped(); statErr == nil && dropped > 0 && err == nil {
		s.err = fmt.Errorf("the kernel dropped %d frames before they were seen", dropped)
		err = s.err
	}
	return append([]int64(nil), s.times...), err
}

// Kind is the Ethernet type of the frame that was seen at that time.
func (s *Sniffer) Kind(at int64) uint16 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i, ok := slices.BinarySearch(s.times, at); ok {
		return s.kinds[i]
	}
	return 0
}

// dropped asks the kernel for what didn't fit its buffer since the last call.
func (s *Sniffer) dropped() (n uint32, err error) {
	conn, err := s.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	var stats *unix.TpacketStats
	var statErr error
	err = conn.Control(func(fd uintptr) {
		stats, statErr = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	})
	if err = errors.Join(err, statErr); err != nil {
		return 0, err
	}
	return stats.Drops, nil
}

// Await returns when a frame was seen at or after the given time.
func (s *Sniffer) Await(ctx context.Context, since time.Time) (time.Time, error) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		s.mu.Lock()
		for i := len(s.times) - 1; i >= 0 && s.times[i] >= since.UnixNano(); i-- {
			if i == 0 || s.times[i-1] < since.UnixNano() {
				at := time.Unix(0, s.times[i])
				s.mu.Unlock()
				return at, nil
			}
		}
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			return time.Time{}, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// Close ends the watching and waits for its goroutine.
func (s *Sniffer) Close() error {
	err := s.file.Close()
	<-s.done
	return err
}
