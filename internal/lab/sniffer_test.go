package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/internal/netns"
)

func init() { workers["sniffer"] = workSniffer }

func TestSniffer(t *testing.T) {
	if out := inLab(t, "sniffer"); out != "" {
		t.Error(out)
	}
}

// say puts n broadcast frames with a source address on a device of h.
func say(h *Host, device string, mac net.HardwareAddr, n int) error {
	return netns.Do(h.Netns(), func() error {
		ifi, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		frame := append([]byte{255, 255, 255, 255, 255, 255}, mac...)
		frame = append(binary.BigEndian.AppendUint16(frame, 0x88b5), make([]byte, 46)...) // an EtherType for local experiments
		for range n {
			if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: ifi.Index}); err != nil {
				return err
			}
		}
		return nil
	})
}

func workSniffer() error {
	top, err := NewTopology(1)
	if err != nil {
		return err
	}
	defer top.Close()
	guest := net.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	other := net.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x57}
	sniffers := map[string]*Sniffer{}
	for _, name := range NodeNames {
		s, err := top.Sniff(name, guest)
		if err != nil {
			return err
		}
		defer s.Close()
		sniffers[name] = s
	}
	start := time.Now()
	// The bridges forward n1's frames to n2's cable, where they pass by.
	if err := say(top.Nodes["n1"], NodeBridge, other, 5); err != nil {
		return err
	}
	if err := say(top.Nodes["n1"], NodeBridge, guest, 3); err != nil {
		return err
	}
	if err := top.SetLAN("n1", false); err != nil {
		return err
	}
	_ = say(top.Nodes["n1"], NodeBridge, guest, 7) // into a cable that is plugged out
	if err := top.SetLAN("n1", true); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	// The carrier takes a moment to come back.
	back := time.Now()
	for heard := false; !heard; {
		if err := say(top.Nodes["n1"], NodeBridge, guest, 1); err != nil {
			return err
		}
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		_, err := sniffers["n1"].Await(short, back)
		cancel()
		heard = err == nil
		if ctx.Err() != nil {
			return fmt.Errorf("no frame was seen after the cable was back: %w", ctx.Err())
		}
	}
	if err := say(top.Nodes["n2"], NodeBridge, guest, 2); err != nil {
		return err
	}
	if _, err := sniffers["n2"].Await(ctx, start); err != nil {
		return err
	}
	for name, s := range sniffers {
		times, err := s.Frames()
		if err != nil {
			return err
		}
		want := map[string]int{"n1": 4, "n2": 2}[name]
		if len(times) != want {
			return fmt.Errorf("%s: %d frames, want %d", name, len(times), want)
		}
		for i, at := range times {
			if at < start.UnixNano() || at > time.Now().UnixNano() || i > 0 && at < times[i-1] {
				return fmt.Errorf("%s: times are not those of this test: %v", name, times)
			}
		}
	}
	return nil
}
