package netcompare_test

import (
	"context"
	"fmt"
	"strings"

	"github.com/coloctl/coloctl/netcompare"
	"github.com/coloctl/coloctl/qmp"
)

var nics = []netcompare.NIC{{Name: "net0", MAC: "52:54:00:12:34:56", Bridge: "br0", Tap: "web0"}}

// The NICs on QEMU's command line, the same on both nodes.
func ExampleArgs() {
	fmt.Println(strings.Join(netcompare.Args(nics), " "))
	// Output:
	// -netdev tap,id=nd-net0,ifname=web0,script=no,downscript=no,vhost=off -device virtio-net-pci,id=net0,netdev=nd-net0,mac=52:54:00:12:34:56,romfile=
}

// Both sides of a protection, in their order.
func ExampleConnect() {
	at := netcompare.Endpoint{Host: "10.90.0.2", Ports: map[string]netcompare.PortPair{"net0": {Mirror: 9003, Compare: 9004}}}
	protect := func(ctx context.Context, standby, primary *qmp.Client) error {
		if err := netcompare.Listen(ctx, standby, nics, at); err != nil {
			return err
		}
		if err := netcompare.Connect(ctx, primary, nics, at, netcompare.Options{SocketDir: "/run/web"}); err != nil {
			return err
		}
		// Here the migration is started, and waits at pre-switchover with the guest stopped.
		return netcompare.Enable(ctx, primary, nics)
	}
	_ = protect
}

// A promoted secondary has its voice: first the tap is put into the bridge, then the switches learn where the guest is.
func ExamplePromote() {
	promote := func(ctx context.Context, host netcompare.Host, c *qmp.Client) error {
		if err := netcompare.Promote(ctx, c, nics); err != nil {
			return err
		}
		for _, n := range nics {
			if err := host.Join(ctx, n); err != nil {
				return err
			}
		}
		return netcompare.Announce(ctx, c, nics)
	}
	_ = promote
}
