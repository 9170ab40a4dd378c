package netcompare

import (
	"bytes"
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
	for _, n := range p.nics[0] {
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
