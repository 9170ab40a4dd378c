package netcompare

import (
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"
)

// What the guest says goes to the process that compares, and nowhere while there is none.
func TestRealQEMUExternal(t *testing.T) {
	ctx, p := t.Context(), newPair(t, realNICs[1]) // e1000: an announcement has no virtio-net header
	nics, n := p.nics, p.nics[0]
	a, b := p.start(t, 0), p.start(t, 1)
	p.join(t, 0)
	empty := a.left(t)
	must(t, Listen(ctx, b.Client, nics, p.endpoint(1, "server")))
	o := a.options()
	o.External = true
	must(t, Connect(ctx, a.Client, nics, p.endpoint(1, "client"), o))
	p.speaks(t, 0, a, nics, true)
	must(t, Enable(ctx, a.Client, nics))
	p.speaks(t, 0, a, nics, false)

	to := ComparerNICs(nics, o)[0]
	for range 2 { // a second process finds everything as the first one did
		primary, secondary, out := dialUnix(t, to.Primary), dialUnix(t, to.Secondary), dialUnix(t, to.Out)
		must(t, a.ObjectDel(ctx, to.Reader.ID))
		must(t, a.ObjectAdd(ctx, to.Reader.Type, to.Reader.ID, to.Reader.Props))
		p.lan[0][n.Name].drain()
		must(t, Announce(ctx, a.Client, nics))
		frame := readFrame(t, primary)
		if p.lan[0][n.Name].from(n.MAC, 200*time.Millisecond) {
			t.Error("a packet has left unseen")
		}
		must(t, Announce(ctx, b.Client, nics))
		readFrame(t, secondary)
		if p.lan[0][n.Name].from(n.MAC, 200*time.Millisecond) {
			t.Error("a packet of the secondary has left")
		}
		_, err := out.Write(frame)
		must(t, err)
		if !p.lan[0][n.Name].from(n.MAC, 5*time.Second) {
			t.Error("what was released does not leave")
		}
		for _, c := range []net.Conn{primary, secondary, out} {
			c.Close()
		}
		p.speaks(t, 0, a, nics, false)
	}
	b.kill()
	a.yank(t, nics)
	must(t, Disconnect(ctx, a.Client, nics))
	same(t, "after Disconnect", a.left(t), empty)
	p.speaks(t, 0, a, nics, true)
}

func dialUnix(t *testing.T, path string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", path)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func readFrame(t *testing.T, c net.Conn) []byte {
	t.Helper()
	must(t, c.SetReadDeadline(time.Now().Add(5*time.Second)))
	frame := make([]byte, 4)
	if _, err := io.ReadFull(c, frame); err != nil {
		t.Fatal(err)
	}
	frame = append(frame, make([]byte, binary.BigEndian.Uint32(frame))...)
	_, err := io.ReadFull(c, frame[4:])
	must(t, err)
	return frame
}
