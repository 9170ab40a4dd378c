package libvirt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// eventPacket is QEMU's event as libvirtd sends it.
func eventPacket(name string, data *string) []byte {
	var b bytes.Buffer
	word := func(v uint32) { _ = binary.Write(&b, binary.BigEndian, v) }
	text := func(s string) {
		word(uint32(len(s)))
		b.WriteString(s)
		b.Write(make([]byte, (4-len(s)%4)%4))
	}
	for _, v := range []uint32{0, qemuProgram, 1, monitorEvent, typeMessage, 0, 0} {
		word(v)
	}
	word(7)
	text("vm1")
	b.Write(make([]byte, 16))
	word(3)
	text(name)
	b.Write(make([]byte, 8))
	word(12)
	if data == nil {
		word(0)
	} else {
		word(1)
		text(*data)
	}
	out := b.Bytes()
	binary.BigEndian.PutUint32(out, uint32(len(out)))
	return out
}

func TestEventsWithoutDataAreCompleted(t *testing.T) {
	stop := eventPacket("STOP", nil)
	got := completeEvent(bytes.Clone(stop))
	if len(got) != len(stop)+4 || binary.BigEndian.Uint32(got) != uint32(len(got)) || !bytes.Equal(got[4:len(stop)], stop[4:]) {
		t.Errorf("STOP became % x", got)
	}
	data := `{"guest":true}`
	whole := eventPacket("SHUTDOWN", &data)
	if got := completeEvent(bytes.Clone(whole)); !bytes.Equal(got, whole) {
		t.Errorf("an event with data was changed")
	}
	for i := range stop[headerLen:] { // whatever is cut off, nothing is read that isn't there
		short := bytes.Clone(stop[:headerLen+i])
		if got := completeEvent(bytes.Clone(short)); !bytes.Equal(got, short) {
			t.Errorf("a packet cut after %d bytes was changed", headerLen+i)
		}
	}
}

// TestWireKeepsPackets sends packets in the smallest pieces and reads them with small buffers.
func TestWireKeepsPackets(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	data := `{"a":1}`
	first, second := eventPacket("RESET", &data), eventPacket("RESUME", nil)
	go func() {
		defer server.Close()
		for _, b := range append(bytes.Clone(first), second...) {
			if _, err := server.Write([]byte{b}); err != nil {
				return
			}
		}
	}()
	w := newWire(client)
	close(w.opened)
	_ = w.SetReadDeadline(time.Now().Add(5 * time.Second))
	var got []byte
	buf := make([]byte, 3)
	for {
		n, err := w.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil {
			break
		}
	}
	if want := append(bytes.Clone(first), completeEvent(bytes.Clone(second))...); !bytes.Equal(got, want) {
		t.Errorf("read % x\nwant % x", got, want)
	}
}

func FuzzCompleteEvent(f *testing.F) {
	data := `{}`
	f.Add(eventPacket("STOP", nil))
	f.Add(eventPacket("SHUTDOWN", &data))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headerLen {
			return
		}
		if got := completeEvent(bytes.Clone(b)); !bytes.Equal(got, b) && len(got) != len(b)+4 {
			t.Errorf("% x became % x", b, got)
		}
	})
}

// openServer answers what is asked when a connection is opened, and closes it then.
func openServer(t *testing.T) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	t.Cleanup(func() { _ = l.Close(); <-served })
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			for _, body := range [][]byte{{0, 0, 0, 1, 0, 0, 0, 0}, nil} { // "authentication: none", then "opened"
				call, err := readPacket(c)
				if err != nil {
					break
				}
				reply := append(bytes.Clone(call[:headerLen]), body...)
				binary.BigEndian.PutUint32(reply, uint32(len(reply)))
				binary.BigEndian.PutUint32(reply[16:], 1)
				if _, err := c.Write(reply); err != nil {
					break
				}
			}
			_ = c.Close()
		}
	}()
	return socket
}

// TestLostWhenJustOpened: go-libvirt writes a field when a connection is open that it reads when the connection has ended. The race detector sees it
// unless something orders the two.
func TestLostWhenJustOpened(t *testing.T) {
	a := Address{Socket: openServer(t)}
	for range 20 {
		c, err := Dial(t.Context(), a)
		if err != nil {
			if !errors.Is(err, ErrUnreachable) {
				t.Fatal(err)
			}
			continue
		}
		_ = c.Close()
		<-c.l.Disconnected()
	}
}
