package netcompare

import (
	"errors"
	"strings"
	"testing"
)

func TestArgs(t *testing.T) {
	got := strings.Join(Args([]NIC{
		{Name: "net0", MAC: "52:54:00:12:34:56", Tap: "web-a"},
		{Name: "net1", MAC: "52:54:00:12:34:57", Tap: "web-b", Model: "e1000"},
		{Name: "lan", MAC: "52:54:00:12:34:58", Tap: "web-c", Model: "rtl8139"},
	}), "\n")
	golden(t, "args", got+"\n")
	if len(Args(nil)) != 0 {
		t.Error("arguments for no NIC")
	}
}

func TestCheck(t *testing.T) {
	good := NIC{Name: "net0", MAC: "52:54:00:12:34:56", Tap: "tap0"}
	if err := Check([]NIC{good, {Name: "n", MAC: "52:54:00:12:34:57", Tap: "tap1", Bridge: "br0", Model: "e1000"}}); err != nil {
		t.Error(err)
	}
	with := func(change func(*NIC)) NIC { n := good; change(&n); return n }
	for want, nics := range map[string][]NIC{
		"a name is a small letter":    {with(func(n *NIC) { n.Name = "Net0" })},
		"two NICs have this name":     {good, with(func(n *NIC) { n.MAC, n.Tap = "52:54:00:12:34:57", "tap1" })},
		`model "e1000e"`:              {with(func(n *NIC) { n.Model = "e1000e" })},
		"is not a MAC address":        {with(func(n *NIC) { n.MAC = "52:54" })},
		"is a multicast address":      {with(func(n *NIC) { n.MAC = "01:54:00:12:34:56" })},
		"two NICs have the address":   {good, with(func(n *NIC) { n.Name, n.Tap, n.MAC = "net1", "tap1", strings.ToUpper(n.MAC) })},
		`tap "tap0,script=/bin/evil"`: {with(func(n *NIC) { n.Tap = "tap0,script=/bin/evil" })},
		`tap "sixteen-letters-"`:      {with(func(n *NIC) { n.Tap = "sixteen-letters-" })},
		"two NICs have the tap tap0":  {good, with(func(n *NIC) { n.Name, n.MAC = "net1", "52:54:00:12:34:57" })},
		"differs from it only by -0":  {good, with(func(n *NIC) { n.Name, n.MAC, n.Tap = "net0-0", "52:54:00:12:34:57", "tap1" })},
		`bridge "tap0"`:               {with(func(n *NIC) { n.Bridge = "tap0" })},
	} {
		if err := Check(nics); !errors.Is(err, ErrNIC) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
