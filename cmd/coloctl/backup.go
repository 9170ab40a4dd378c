package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/internal/lab"
)

// backupCommands are those of vm that copy all disks at once.
func backupCommands(r rules) []*cli.Command {
	return []*cli.Command{
		r.operation(&cli.Command{Name: "backup", Usage: "copy all disks of a VM, as they are at one moment, to a new folder on the node that runs it, or to the exports of an NBD server, each called as its disk; it stays protected", Flags: []cli.Flag{
			&cli.StringFlag{Name: "since", Usage: "copy only what was written since the backup in `FOLDER`, which the new one then needs"},
			&cli.StringFlag{Name: "limit", Usage: "copy at most this much a second of each disk, such as 50MiB"},
		}, Action: withSite(action{
			kind: "backup", body: backupBody,
			do: func(ctx context.Context, t *target, vm string, body any) (api.Operation, error) {
				return t.Backup(ctx, vm, body.(api.BackupRequest))
			},
		}.run)}, operands{min: 2, max: 2, usage: "VM FOLDER|nbd://HOST[:PORT][/PREFIX]"}),
		r.change(&cli.Command{Name: "restore", Usage: "make a VM of a backup, on the node that has it; it is not started", Flags: []cli.Flag{
			&cli.StringFlag{Name: "name", Usage: "`NAME` of the new VM, whose NICs get other MAC addresses then; the old one's if left out"},
		}, Action: withSite(vmRestore)}, operands{min: 2, max: 2, usage: "FOLDER NODE"}),
	}
}

// onNode refuses paths that mean something only here.
func onNode(path string) error {
	if !filepath.IsAbs(path) {
		return usagef("%s: expected an absolute path on the node", path)
	}
	return nil
}

func backupBody(cc *cli.Context, _ string) (any, error) {
	in := api.BackupRequest{Request: api.Request{Reason: cc.String("reason")}, BackupOptions: colo.BackupOptions{Since: cc.String("since")}}
	to := cc.Args().Get(1)
	if strings.Contains(to, "://") {
		if _, err := blockrepl.ParseBackupServer(to); err != nil {
			return nil, usagef("%v", err)
		}
		if in.Since != "" {
			return nil, usagef("a backup to %s copies everything: --since needs a folder", to)
		}
		in.Server = to
	} else {
		if err := onNode(to); err != nil {
			return nil, err
		}
		in.Dir = to
	}
	if in.Since != "" {
		if err := onNode(in.Since); err != nil {
			return nil, err
		}
	}
	if cc.IsSet("limit") {
		limit, err := colo.ParseSize(cc.String("limit"))
		if err != nil {
			return nil, usagef("--limit: %v", err)
		}
		in.Limit = int64(limit)
	}
	return in, nil
}

func vmRestore(cc *cli.Context, s *site) error {
	dir := cc.Args().First()
	if err := onNode(dir); err != nil {
		return err
	}
	t, err := s.pickNode(cc.Args().Get(1))
	if err != nil {
		return err
	}
	request := api.RestoreRequest{Request: api.Request{Reason: cc.String("reason")}, RestoreOptions: colo.RestoreOptions{Dir: dir, Name: cc.String("name")}}
	refused := func(task string, err error) error {
		if errors.Is(err, colo.ErrVMExists) {
			return &taskError{task + " on " + t.Name, err, "give the restored VM a name of its own: --name NEW"}
		}
		return attempt(err, task, cc.String("name"), t)
	}
	if cc.Bool("dry-run") {
		if err := t.CheckRestore(cc.Context, request); err != nil {
			return refused("restore (dry run)", err)
		}
		return tellSteps(cc, cmp.Or(cc.String("name"), dir), t, "restore", []string{"copy the images of " + dir + " to the storage folder", "store the VM"})
	}
	made, err := t.Restore(cc.Context, request)
	if err != nil {
		return refused("restore", err)
	}
	if f := format(cc); f != lab.FormatTable {
		return lab.Encode(cc.App.Writer, f, made)
	}
	fmt.Fprintf(cc.App.ErrWriter, "restored on %s; to start it: coloctl vm start %s\n", made.Status.Node, made.Spec.Name)
	_, err = fmt.Fprintln(cc.App.Writer, made.Spec.Name)
	return err
}
