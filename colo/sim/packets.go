package sim

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"
)

const heartbeatPort = 7788

// packets is the socket of a daemon's heartbeats on one link.
type packets struct {
	e    *env
	link int
	in   chan []byte
	done chan struct{}
	over bool
}

func (e *env) listenPacket(_ context.Context, local netip.AddrPort) (net.PacketConn, error) {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	_, l := e.w.hostAt(local.Addr())
	p := &packets{e: e, link: l, in: make(chan []byte, 256), done: make(chan struct{})}
	if e.gone {
		return nil, errGone
	}
	e.eps = append(e.eps, p)
	return p, nil
}

func (p *packets) shut() {
	if !p.over {
		p.over = true
		close(p.done)
	}
}

func (p *packets) Close() error {
	p.e.w.mu.Lock()
	defer p.e.w.mu.Unlock()
	p.shut()
	return nil
}

func (p *packets) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case <-p.done:
		return 0, nil, net.ErrClosed
	case got := <-p.in:
		if p.e.pass() != nil {
			return 0, nil, net.ErrClosed
		}
		return copy(b, got), nil, nil
	}
}

func (p *packets) WriteTo(b []byte, _ net.Addr) (int, error) {
	if p.e.pass() != nil {
		return 0, net.ErrClosed
	}
	w, h := p.e.w, p.e.h
	w.mu.Lock()
	defer w.mu.Unlock()
	l := &w.links[p.link]
	a := h.actor(opBeat + opKind(p.link))
	if p.over || l.cut[h.i] > 0 || !h.up || l.loss > 0 && w.chance(a, l.loss) {
		return len(b), nil
	}
	for range 1 + btoi(l.loss > 0 && w.chance(a, 5)) {
		w.in(w.between(a, 100*time.Microsecond, ms), func() {
			to := h.other()
			if to.env == nil || !to.up {
				return
			}
			for _, o := range to.env.eps {
				if o.link == p.link && !o.over {
					select {
					case o.in <- b:
					default:
					}
				}
			}
		})
	}
	return len(b), nil
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (p *packets) LocalAddr() net.Addr              { return nil }
func (p *packets) SetDeadline(time.Time) error      { return errors.ErrUnsupported }
func (p *packets) SetReadDeadline(time.Time) error  { return errors.ErrUnsupported }
func (p *packets) SetWriteDeadline(time.Time) error { return nil }
