package netcompare

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/internal/netns"
)

// ErrProbeSeen is returned by Probe when the port answers but the probe came to be a connection there after all. A
// standby's stream that has seen one is used up.
var ErrProbeSeen = errors.New("the probe became a connection")

// Probe finds out whether something listens at addr (IP address and port) without becoming a connection there: an
// ordinary one would end the stream it tries, because QEMU's redirectors let go of a chardev at its first close.
//
// The handshake's last packet is held back (TCP_QUICKACK off before connect; Linux then delays that ACK by 200 ms) and a
// reset is sent instead of it (SO_LINGER 0), so the listener's accept(2) never sees anything.
func (h Host) Probe(ctx context.Context, addr string) error {
	d := &net.Dialer{
		KeepAlive:     -1,
		FallbackDelay: -1,
		Control: func(_, _ string, rc syscall.RawConn) error {
			var err error
			cerr := rc.Control(func(fd uintptr) {
				err = errors.Join(
					unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0),
					unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
				)
			})
			return errors.Join(cerr, err)
		},
	}
	d.SetMultipathTCP(false)
	start := time.Now()
	conn, err := netns.DialWith(ctx, h.Netns, d, "tcp", addr)
	if err != nil {
		return err
	}
	sent, err := ackSent(conn.(*net.TCPConn))
	took := time.Since(start)
	switch cerr := conn.Close(); {
	case err != nil:
		return fmt.Errorf("probe %s: %w", addr, err)
	case sent:
		return fmt.Errorf("probe %s: %w (it took %v)", addr, ErrProbeSeen, took)
	default:
		return cerr
	}
}

// ackSent tells whether more than the SYN, and its repetitions, went out.
func ackSent(conn *net.TCPConn) (bool, error) {
	rc, err := conn.SyscallConn()
	if err != nil {
		return false, err
	}
	var info *unix.TCPInfo
	var ierr error
	if err := rc.Control(func(fd uintptr) { info, ierr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); err != nil {
		return false, err
	}
	if ierr != nil {
		return false, ierr
	}
	return info.Segs_out > info.Total_retrans+1, nil
}
