package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
)

// tuneFlags change a resync that runs; with any of them none is begun.
func tuneFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "limit", Usage: "change a resync that runs: at most this much a second for each disk, such as 50MiB; 0 lifts the limit"},
		&cli.BoolFlag{Name: "pause", Usage: "change a resync that runs: hold it; the guest runs on, unprotected"},
		&cli.BoolFlag{Name: "resume", Usage: "change a resync that runs: let one go on that was paused"},
	}
}

// resync begins one, or changes the one that runs.
func resync(cc *cli.Context, s *site) error {
	if !cc.IsSet("limit") && !cc.Bool("pause") && !cc.Bool("resume") {
		return action{
			kind: "resync", body: resyncBody,
			do: func(ctx context.Context, t *target, vm string, body any) (api.Operation, error) {
				return t.Resync(ctx, vm, body.(api.ResyncRequest))
			},
		}.run(cc, s)
	}
	if cc.IsSet("mode") {
		return usagef("--mode is for a resync that begins; --limit, --pause and --resume change one that runs")
	}
	if cc.Bool("pause") && cc.Bool("resume") {
		return usagef("--pause and --resume exclude each other")
	}
	in := api.TuneRequest{Request: api.Request{Reason: cc.String("reason")}}
	if cc.IsSet("limit") {
		size, err := colo.ParseSize(cc.String("limit"))
		if err != nil {
			return usagef("--limit: %v", err)
		}
		limit := int64(size)
		in.Limit = &limit
	}
	if pause := cc.Bool("pause"); pause || cc.Bool("resume") {
		in.Pause = &pause
	}
	vm := cc.Args().First()
	t, halves, err := s.Route(cc.Context, vm)
	if err != nil {
		return attempt(err, "resync", vm, t)
	}
	if cc.Bool("dry-run") {
		if err := t.CheckTuneResync(cc.Context, vm, in); err != nil {
			return silence(attempt(err, "resync", vm, t), vm, halves)
		}
		_, err := fmt.Fprintf(cc.App.Writer, "the resync of %s on %s would be changed\n", vm, t)
		return err
	}
	if err := t.TuneResync(cc.Context, vm, in); err != nil {
		return silence(attempt(err, "resync", vm, t), vm, halves)
	}
	return nil
}
