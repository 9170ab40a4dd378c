package heartbeat

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// reopenIntervals is how many intervals pass before a socket is tried again.
const reopenIntervals = 10

// read owns the path's socket: it opens it, again if need be, and hands what comes in to the loop.
func (m *Monitor) read(ctx context.Context, p *path, in chan<- arrival) {
	tell := func(a arrival) {
		a.path, a.at = p, time.Now()
		select {
		case in <- a:
		case <-ctx.Done():
		}
	}
	for {
		conn, err := m.listen(ctx, p.cfg)
		if err == nil {
			tell(arrival{sock: true, conn: conn})
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			err = m.receive(conn, tell)
			stop()
			_ = conn.Close()
		}
		tell(arrival{sock: true, err: fmt.Errorf("path %s, %v: %w", p.cfg.Name, p.cfg.Local, err)})
		retry := time.NewTimer(reopenIntervals * m.cfg.Interval)
		select {
		case <-retry.C:
		case <-ctx.Done():
			retry.Stop()
			return
		}
	}
}

// receive returns when the socket breaks or is closed.
func (m *Monitor) receive(conn net.PacketConn, tell func(arrival)) error {
	c := newCodec(m.cfg.Key)
	b := make([]byte, maxDatagram+1) // one more, so that a longer one is seen to be too long
	for {
		n, _, err := conn.ReadFrom(b)
		if err != nil {
			return err
		}
		// The sender's address isn't looked at: it proves nothing, and a path may change it on the way.
		d, err := c.open(b[:n])
		tell(arrival{d: d, err: err})
	}
}

func (m *Monitor) listen(ctx context.Context, p Path) (net.PacketConn, error) {
	if m.cfg.ListenPacket != nil {
		return m.cfg.ListenPacket(ctx, p.Local)
	}
	return listenUDP(ctx, p.Local, p.Interface)
}

func listenUDP(ctx context.Context, local netip.AddrPort, device string) (net.PacketConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		cerr := raw.Control(func(fd uintptr) {
			// Ahead of bulk traffic in the host's own queues; losing it is no reason to do without the path.
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PRIORITY, 6)
			if device != "" {
				err = unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, device)
			}
		})
		if cerr != nil {
			return cerr
		}
		return err
	}}
	return lc.ListenPacket(ctx, "udp", local.String())
}
