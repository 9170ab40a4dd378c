package netcompare

import (
	"bytes"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/coloctl/coloctl/qmp"
)

// mirrored sends a frame on the primary's LAN and looks for it in the secondary, behind the redirector that takes it in.
// Of the NICs without a driver only rtl8139 lets QEMU read its tap.
func mirrored(t *testing.T, p *pair, secondary *guest) {
	t.Helper()
	for _, n := range p.nics {
		if n.Model == "rtl8139" && !p.reaches(t, n, secondary) {
			t.Errorf("NIC %s: the secondary doesn't get the primary's packets", n.Name)
		}
	}
}

func (p *pair) reaches(t *testing.T, n NIC, secondary *guest) bool {
	t.Helper()
	ctx := t.Context()
	l, err := net.Listen("unix", filepath.Join(secondary.dir, "spy"))
	must(t, err)
	defer l.Close()
	must(t, secondary.ChardevAddSocket(ctx, "spy", qmp.ChardevSocket{Unix: l.Addr().String()}))
	conn, err := l.Accept()
	must(t, err)
	defer conn.Close()
	must(t, secondary.ObjectAdd(ctx, "filter-mirror", "spying", map[string]any{"netdev": n.netdev(), "queue": "tx", "outdev": "spy"}))
	defer func() {
		must(t, secondary.ObjectDel(ctx, "spying"))
		must(t, secondary.ChardevRemove(ctx, "spy"))
	}()

	dst, err := net.ParseMAC(n.MAC)
	must(t, err)
	payload := []byte("seen by both, NIC " + n.Name)
	frame := slices.Concat(dst, []byte{0x02, 0, 0, 0, 0, 0x99, 0x88, 0xb5}, payload, make([]byte, 64))
	_, err = p.lan[0][n.Name].conn.Write(frame)
	must(t, err)
	must(t, conn.SetReadDeadline(time.Now().Add(5*time.Second)))
	var seen []byte
	for buf := make([]byte, 4096); ; {
		k, err := conn.Read(buf)
		seen = append(seen, buf[:k]...)
		if bytes.Contains(seen, payload) {
			return true
		}
		if err != nil {
			return false
		}
	}
}

// A primary with another key connects, but no stream comes up; nothing is left.
func TestRealQEMUWrongKey(t *testing.T) {
	p := newPair(t, realNICs[0]).secure(t)
	standby := p.start(t, 1)
	must(t, Listen(t.Context(), standby.Client, p.nics, p.endpoint(1, "server")))
	primary := p.secure(t).start(t, 0)
	before := primary.left(t)
	if err := Connect(t.Context(), primary.Client, p.nics, p.endpoint(1, "client"), primary.options()); !errors.Is(err, ErrStream) {
		t.Errorf("got %v, want a stream that is down", err)
	}
	same(t, "after Connect", primary.left(t), before)
}

// Whether nobody listens or nobody answers: QEMU never waits for it, and the next attempt is possible or says why not.
func TestRealQEMUNoStandby(t *testing.T) {
	p, ctx := newPair(t, realNICs[0]), t.Context()
	primary := p.start(t, 0)
	before := primary.left(t)
	o := primary.options()
	o.ConnectTimeout = 100 * time.Millisecond
	connect := func() error { return Connect(ctx, primary.Client, p.nics, p.endpoint(1, "client"), o) }
	for range 2 {
		if err := connect(); !errors.Is(err, ErrStream) {
			t.Errorf("nobody listens: %v", err)
		}
		same(t, "after Connect", primary.left(t), before)
	}

	p.host[1].ip(t, "link", "set", "dev", "link", "down")
	done := make(chan error, 1)
	go func() { done <- connect() }()
	for range 10 { // the main loop is free
		begin := time.Now()
		must(t, primary.Stop(ctx))
		must(t, primary.Cont(ctx))
		if took := time.Since(begin); took > time.Second {
			t.Errorf("QEMU stood still for %v", took)
		}
	}
	if err := <-done; !errors.Is(err, ErrStream) {
		t.Errorf("nobody answers: %v", err)
	}
	if err := connect(); !errors.Is(err, ErrPending) {
		t.Errorf("nobody answers, again: %v", err)
	}
}
