package blockrepl_test

import (
	"context"
	"fmt"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/qmp"
)

// The disks of a VM that starts alone, ready to be protected while it runs.
func ExamplePrimaryArgs() {
	disks := []blockrepl.Disk{{Name: "vda", Path: "/srv/vm/web.raw", Format: blockrepl.Raw, Size: 20 << 30}}
	args := append(blockrepl.PrimaryArgs(disks), blockrepl.DeviceArgs(disks)...)
	for i := 0; i < len(args); i += 2 {
		fmt.Println(args[i], args[i+1])
	}
	// Output:
	// -blockdev {"driver":"raw","node-name":"parent-vda","discard":"unmap","file":{"driver":"file","node-name":"pfile-vda","filename":"/srv/vm/web.raw","discard":"unmap"}}
	// -blockdev {"driver":"quorum","node-name":"colo-vda","discard":"unmap","read-pattern":"fifo","vote-threshold":1,"children":["parent-vda"]}
	// -device {"driver":"virtio-blk-pci","id":"blk-vda","drive":"colo-vda","discard":false}
}

// The primary's side of a protection. A standby exports its disks at to.
func ExampleMirror() {
	protect := func(ctx context.Context, main, rescue *qmp.Client, disks []blockrepl.Disk, to blockrepl.Address) error {
		m := blockrepl.NewMirror(main, disks, to, blockrepl.Options{
			Mode: blockrepl.Full, Rescue: rescue,
			OnProgress: func(p blockrepl.Progress) { fmt.Printf("%d of %d bytes\n", p.Done, p.Total) },
		})
		if err := m.Sync(ctx); err != nil { // the guest runs and writes
			return err
		}
		// Here the migration is started, and waits at pre-switchover with the guest stopped.
		if err := m.Switch(ctx); err != nil {
			_ = m.Abort(ctx) // what it can't remove, the next attempt does
			return err
		}
		return nil
	}
	_ = protect
}

// Going on alone when the peer is lost. The yank comes first and out of band: a peer that hangs would hang QEMU's main loop.
func ExampleDetach() {
	survive := func(ctx context.Context, main, rescue *qmp.Client, disks []blockrepl.Disk) error {
		var cut []qmp.YankInstance
		for _, node := range blockrepl.YankNodes(disks) {
			cut = append(cut, qmp.YankInstance{Type: "block-node", NodeName: node})
		}
		if err := rescue.Yank(ctx, cut...); err != nil {
			return err
		}
		if err := main.ColoLostHeartbeat(ctx); err != nil {
			return err
		}
		return blockrepl.Detach(ctx, main, disks)
	}
	_ = survive
}
