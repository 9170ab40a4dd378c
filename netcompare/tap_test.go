package netcompare

import (
	"errors"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var testNIC = NIC{Name: "net0", MAC: "52:54:00:12:34:56", Bridge: "br0", Tap: "web-tap0"}

func TestTapLife(t *testing.T) {
	h, ctx := newHost(t), t.Context()
	for range 2 {
		if err := h.EnsureTap(ctx, "web", testNIC); err != nil {
			t.Fatal(err)
		}
	}
	tap, ok := h.link(t, testNIC.Tap).(*netlink.Tuntap)
	if !ok {
		t.Fatal("no tap was made")
	}
	a := tap.Attrs()
	if tap.NonPersist || tap.Flags&netlink.TUNTAP_VNET_HDR == 0 || tap.Flags&netlink.TUNTAP_MULTI_QUEUE != 0 {
		t.Errorf("not a persistent tap with vnet_hdr and one queue: %+v", tap)
	}
	if a.Alias != "colo:web:net0" || a.HardwareAddr.String() != "fe:54:00:12:34:56" || a.RawFlags&unix.IFF_UP != 0 || a.MasterIndex != 0 {
		t.Errorf("wrong attributes: %+v", a)
	}
	taps, err := h.Taps(ctx)
	if want := (Tap{Name: "web-tap0", VM: "web", NIC: "net0"}); err != nil || len(taps) != 1 || taps[0] != want {
		t.Errorf("taps %+v, %v; want %+v", taps, err, want)
	}

	if err := h.EnsureTap(ctx, "other", testNIC); !errors.Is(err, ErrForeign) {
		t.Errorf("another VM's tap was taken: %v", err)
	}
	if err := h.DeleteTap(ctx, "other", testNIC); !errors.Is(err, ErrForeign) || h.link(t, testNIC.Tap) == nil {
		t.Errorf("another VM's tap was deleted: %v", err)
	}
	for range 2 {
		if err := h.DeleteTap(ctx, "web", testNIC); err != nil {
			t.Fatal(err)
		}
	}
	if h.link(t, testNIC.Tap) != nil {
		t.Error("the tap is still there")
	}
}

// TestTapUser: a tap can be opened by the user it was made for, and not by others.
func TestTapUser(t *testing.T) {
	h := newHost(t)
	for _, user := range []uint32{0, 64055} {
		h.TapUser, h.TapGroup = user, user
		if err := h.EnsureTap(t.Context(), "web", testNIC); err != nil {
			t.Fatal(err)
		}
		tap := h.link(t, testNIC.Tap).(*netlink.Tuntap)
		if tap.Owner != user || tap.Group != user {
			t.Errorf("the tap belongs to user %d and group %d, not to %d", tap.Owner, tap.Group, user)
		}
		if err := h.DeleteTap(t.Context(), "web", testNIC); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTapOfOtherModelsHasNoHeader(t *testing.T) {
	h := newHost(t)
	for _, model := range []string{"e1000", "rtl8139"} {
		n := testNIC
		n.Model, n.Tap = model, "tap-"+model
		if err := h.EnsureTap(t.Context(), "web", n); err != nil {
			t.Fatal(err)
		}
		if tap := h.link(t, n.Tap).(*netlink.Tuntap); tap.Flags&netlink.TUNTAP_VNET_HDR != 0 {
			t.Errorf("%s: vnet_hdr is on", model)
		}
	}
}

// What isn't marked is never touched, whatever its name and kind.
func TestForeignInterfaces(t *testing.T) {
	h, ctx := newHost(t), t.Context()
	h.addBridge(t, "br0", 1500)
	h.ip(t, "tuntap", "add", "theirs", "mode", "tap", "vnet_hdr")
	h.ip(t, "link", "add", "dummy0", "type", "bridge")
	h.ip(t, "link", "set", "dummy0", "alias", "colo:web:net0")
	for _, name := range []string{"theirs", "dummy0"} {
		n := testNIC
		n.Tap = name
		for op, err := range map[string]error{
			"ensure": h.EnsureTap(ctx, "web", n),
			"join":   h.Join(ctx, n),
			"delete": h.DeleteTap(ctx, "web", n),
		} {
			if !errors.Is(err, ErrForeign) {
				t.Errorf("%s %s: %v, want ErrForeign", op, name, err)
			}
		}
		if h.link(t, name) == nil {
			t.Errorf("%s was deleted", name)
		}
	}
	if taps, err := h.Taps(ctx); err != nil || len(taps) != 0 {
		t.Errorf("taps %v, %v", taps, err)
	}
}

func TestParseMark(t *testing.T) {
	for alias, want := range map[string][2]string{
		"colo:web:net0": {"web", "net0"},
		"colo:a:b:c":    {"a:b", "c"},
		"colo:web:":     {},
		"colo::net0":    {},
		"colo:":         {},
		"":              {},
		"other:web:n":   {},
	} {
		vm, nic, ok := parseMark(alias)
		if [2]string{vm, nic} != want || ok != (want[0] != "") {
			t.Errorf("%q: %q %q %v", alias, vm, nic, ok)
		}
	}
}

func TestTapName(t *testing.T) {
	seen := map[string]string{}
	for _, vm := range []string{"a", "web", "a-very-long-name-of-a-vm", "a-very-long-name-of-a-vn", "ü", ""} {
		for _, nic := range []string{"net0", "net1", "a-very-long-nic"} {
			name := TapName(vm, nic)
			if !linkName.MatchString(name) {
				t.Errorf("%q is not an interface name", name)
			}
			if other := seen[name]; other != "" {
				t.Errorf("%s for %s/%s and %s", name, vm, nic, other)
			}
			seen[name] = vm + "/" + nic
		}
	}
	if got := TapName("web", "net0"); got != TapName("web", "net0") || !strings.HasPrefix(got, "web-") {
		t.Errorf("name %s", got)
	}
}
