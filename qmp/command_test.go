package qmp_test

import (
	"context"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coloctl/coloctl/internal/qmptest"
	"github.com/coloctl/coloctl/qmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// everyCommand calls every typed command once with all its arguments.
func everyCommand(ctx context.Context, c *qmp.Client) error {
	inet := qmp.InetAddr{Host: "10.90.0.2", Port: 9998, MPTCP: true}
	yes := true
	var value any
	_, e1 := c.QueryStatus(ctx)
	_, e2 := c.QueryVersion(ctx)
	_, e3 := c.QueryColoStatus(ctx)
	_, e4 := c.QueryMigrate(ctx)
	_, e5 := c.QueryMigrateCapabilities(ctx)
	_, e6 := c.QueryJobs(ctx)
	_, e7 := c.QueryBlockJobs(ctx)
	_, e8 := c.QueryNamedBlockNodes(ctx)
	_, e9 := c.QueryBlockExports(ctx)
	_, e10 := c.QueryChardev(ctx)
	_, e11 := c.QueryYank(ctx)
	_, e12 := c.QueryQMPSchema(ctx)
	_, e13 := c.QOMList(ctx, "/objects")
	_, e14 := c.MachineStatus(ctx)
	return errors.Join(e1, e2, e3, e4, e5, e6, e7, e8, e9, e10, e11, e12, e13, e14,
		c.Stop(ctx),
		c.Cont(ctx),
		c.SystemPowerdown(ctx),
		c.SystemReset(ctx),
		c.Quit(ctx),
		c.AnnounceSelf(ctx, qmp.AnnounceSelf{Interfaces: []string{"nd-net0"}, ID: "a", Rounds: 3}),
		c.Yank(ctx),
		c.Yank(ctx, qmp.YankInstance{Type: "block-node", NodeName: "nbd-vda"}, qmp.YankInstance{Type: "chardev", ID: "cm-net0"}, qmp.YankInstance{Type: "migration"}),

		c.ColoLostHeartbeat(ctx),
		qmp.SetColoCapabilities(ctx, c),
		c.MigrateSetCapabilities(ctx, map[string]bool{"x-colo": false, "events": true}),
		c.MigrateSetParameters(ctx, map[string]any{"x-checkpoint-delay": 500, "downtime-limit": 300, "max-bandwidth": 1 << 33, "tls-creds": "tls0"}),
		c.Migrate(ctx, qmp.Channel{Inet: &inet}),
		c.MigrateIncoming(ctx, qmp.Channel{Unix: "/run/m.sock"}),
		c.MigrateContinue(ctx, "pre-switchover"),
		c.MigrateCancel(ctx),

		c.BlockdevAdd(ctx, map[string]any{"driver": "nbd", "node-name": "nbd-vda", "server": inet.Flat(), "export": "vda"}),
		c.BlockdevAdd(ctx, map[string]any{"driver": "replication", "node-name": "childs-vda", "mode": "secondary", "top-id": "colo-vda", "file": "active-vda"}),
		c.BlockdevAdd(ctx, map[string]any{"driver": "quorum", "node-name": "colo-vda", "read-pattern": "fifo", "vote-threshold": 1, "children": []string{"parent-vda"}}),
		c.BlockdevDel(ctx, "nbd-vda"),
		c.BlockdevChange(ctx, "colo-vda", "", "nbd-vda"),
		c.BlockdevChange(ctx, "colo-vda", "children.1", ""),
		c.BlockDirtyBitmapAdd(ctx, qmp.BlockDirtyBitmapAdd{Node: "parent-vda", Name: "colo-sync", Granularity: 65536, Persistent: true, Disabled: true}),
		c.BlockDirtyBitmapClear(ctx, "parent-vda", "colo-sync"),
		c.BlockDirtyBitmapRemove(ctx, "parent-vda", "colo-sync"),
		c.NBDServerStart(ctx, qmp.NBDServer{Addr: inet, TLSCreds: "tls0", TLSAuthz: "authz0", MaxConnections: 2}),
		c.NBDServerStop(ctx),
		c.BlockExportAdd(ctx, qmp.BlockExport{Type: "nbd", ID: "exp-vda", NodeName: "parent-vda", Name: "vda", Writable: true}),
		c.BlockExportDel(ctx, "exp-vda", "hard"),
		c.BlockExportDel(ctx, "exp-vda", ""),

		c.BlockdevMirror(ctx, qmp.BlockdevMirror{JobID: "resync-vda", Device: "colo-vda", Target: "target-vda", Sync: "full", Speed: 1, Granularity: 65536,
			BufSize: 1 << 20, CopyMode: "write-blocking", OnSourceError: "report", OnTargetError: "report", FilterNode: "f", AutoDismiss: &yes}),
		c.BlockdevBackup(ctx, qmp.BlockdevBackup{JobID: "resync-vda", Device: "parent-vda", Target: "target-vda", Sync: "bitmap", Bitmap: "colo-sync",
			BitmapMode: "always", Speed: 1, OnSourceError: "report", OnTargetError: "report", FilterNode: "f", AutoDismiss: &yes}),
		c.BlockJobCancel(ctx, "resync-vda", true),
		c.BlockJobSetSpeed(ctx, "resync-vda", 0),
		c.JobCancel(ctx, "resync-vda"),
		c.JobDismiss(ctx, "resync-vda"),

		c.ChardevAddSocket(ctx, "cm-net0", qmp.ChardevSocket{Inet: &inet, NoDelay: true, TLSCreds: "tls0", ReconnectMS: 100}),
		c.ChardevAddSocket(ctx, "cp-net0", qmp.ChardevSocket{Unix: "/run/cp.sock", Server: true, TLSAuthz: "authz0", TLSCreds: "tls0"}),
		c.ChardevRemove(ctx, "cm-net0"),
		c.ObjectAdd(ctx, "colo-compare", "comp-net0", map[string]any{"primary_in": "cp-net0-0", "secondary_in": "cs-net0", "outdev": "co-net0-0", "iothread": "io-net0",
			"compare_timeout": 20, "expired_scan_cycle": 10, "max_queue_size": 1024, "vnet_hdr_support": true}),
		c.ObjectAdd(ctx, "filter-mirror", "mirror-net0", map[string]any{"netdev": "nd-net0", "queue": "tx", "outdev": "cm-net0", "status": "off",
			"vnet_hdr_support": true, "insert": "before", "position": "id=rew-net0"}),
		c.ObjectDel(ctx, "mirror-net0"),
		c.QOMSet(ctx, "/objects/mirror-net0", "status", "on"),
		c.QOMGet(ctx, "/objects/mirror-net0", "status", &value),
	)
}

// The arguments of every typed command are written down in a golden file.
func TestCommandsGolden(t *testing.T) {
	f := qmptest.New(t)
	c := f.Client(t.Context())
	if err := everyCommand(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, call := range f.Calls() {
		b.WriteString(call.String() + "\n")
	}
	const file = "testdata/commands.golden"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), b.String()); d != "" {
		t.Error(d)
	}
}

// Every typed command with all its arguments is known to the real QEMU.
func TestCommandsAgainstSchema(t *testing.T) {
	features, err := qmp.Probe(t.Context(), anyQEMU(t))
	if err != nil {
		t.Fatal(err)
	}
	f := qmptest.New(t)
	if err := everyCommand(t.Context(), f.Client(t.Context())); err != nil {
		t.Fatal(err)
	}
	for _, call := range f.Calls() {
		var args any
		if call.Args != nil {
			args = call.Args
		}
		if err := features.Check(call.Command, args); err != nil {
			t.Errorf("%s: %v", call, err)
		}
	}
}

func TestReplies(t *testing.T) {
	f := qmptest.New(t)
	c := f.Client(t.Context())
	f.Reply("query-named-block-nodes", []any{map[string]any{
		"node-name": "colo-vda", "drv": "quorum", "image": map[string]any{"virtual-size": 1 << 40},
		"children":      []any{map[string]string{"child": "children.1", "node-name": "nbd-vda"}},
		"dirty-bitmaps": []any{map[string]any{"name": "colo-sync", "count": 65536, "recording": true}},
	}})
	nodes, err := c.QueryNamedBlockNodes(t.Context())
	want := []qmp.BlockNode{{NodeName: "colo-vda", Driver: "quorum", Image: qmp.BlockImage{VirtualSize: 1 << 40},
		Children:     []qmp.BlockChild{{Child: "children.1", NodeName: "nbd-vda"}},
		DirtyBitmaps: []qmp.DirtyBitmap{{Name: "colo-sync", Count: 65536, Recording: true}}}}
	if d := cmp.Diff(want, nodes); d != "" || err != nil {
		t.Error(err, d)
	}
	if err := c.ChardevAddSocket(t.Context(), "x", qmp.ChardevSocket{}); err == nil {
		t.Error("a chardev without address was accepted")
	}
	if s := (qmp.InetAddr{Host: "fd00::1", Port: 9}).String(); s != "[fd00::1]:9" {
		t.Error(s)
	}
}
