package lab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/internal/netns"
)

// maxOnTheWay bounds the frames that a slow link carries in one direction; more are lost, as in any queue.
const maxOnTheWay = 4096

// maxFrame is the largest that a cable hands over, before it is cut into packets.
const maxFrame = 1 << 17

// Slowness carries the frames of a link instead of its bridge: later, and not all. It does in a process what netem does in kernels that have it.
type Slowness struct {
	Passed, Lost atomic.Uint64

	files []*os.File
	wg    sync.WaitGroup
}

// Slow takes the link out of its bridge and carries its frames with a delay in each direction and a share of losses, until the Slowness is
// closed; then the link is cut until it is restored.
func (l *Link) Slow(delay time.Duration, loss float64, seed uint64) (*Slowness, error) {
	if err := l.Cut(CutSilent); err != nil {
		return nil, err
	}
	s := &Slowness{}
	var ends []*os.File
	for _, node := range NodeNames {
		f, err := l.fabric.openPort(l.port(node))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("link %s: %w", l.Name, err), s.Close())
		}
		s.files, ends = append(s.files, f), append(ends, f)
	}
	for i := range ends {
		queue := make(chan late, maxOnTheWay)
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		s.wg.Go(func() {
			defer close(queue)
			s.take(ends[i], queue, delay, func() bool { return random.Float64() < loss })
		})
		s.wg.Go(func() { s.give(ends[1-i], queue) })
	}
	return s, nil
}

// late is a frame on its way.
type late struct {
	due   time.Time
	frame []byte // behind its virtio-net header, which says what the sender has left to the card
}

func (s *Slowness) take(from *os.File, queue chan<- late, delay time.Duration, lose func() bool) {
	buf := make([]byte, maxFrame)
	for {
		n, err := from.Read(buf)
		if errors.Is(err, unix.ENETDOWN) {
			continue // said once
		}
		if err != nil {
			return // it is closed
		}
		if lose() {
			s.Lost.Add(1)
			continue
		}
		select {
		case queue <- late{time.Now().Add(delay), append([]byte(nil), buf[:n]...)}:
		default:
			s.Lost.Add(1)
		}
	}
}

func (s *Slowness) give(to *os.File, queue <-chan late) {
	for f := range queue {
		time.Sleep(time.Until(f.due)) // this is the delay itself
		if _, err := to.Write(f.frame); err != nil {
			s.Lost.Add(1)
			continue
		}
		s.Passed.Add(1)
	}
}

// Close ends it. What is still on its way is lost.
func (s *Slowness) Close() error {
	var err error
	for _, f := range s.files {
		err = errors.Join(err, f.Close())
	}
	s.files = nil
	s.wg.Wait()
	return err
}

// openPort opens an interface for frames, in and out, each behind a virtio-net header.
func (h *Host) openPort(name string) (file *os.File, err error) {
	err = netns.Do(h.Netns(), func() error {
		return h.do(name, func(l netlink.Link) error {
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				return err
			}
			err = errors.Join(
				unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
				unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
				bufferSize(fd, 8<<20),
				unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: l.Attrs().Index}),
			)
			if err != nil {
				return errors.Join(err, unix.Close(fd))
			}
			file = os.NewFile(uintptr(fd), "port:"+name)
			return nil
		})
	})
	return file, err
}
