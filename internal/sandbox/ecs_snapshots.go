package sandbox

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
)

// maker returns the image that uses a snapshot, or nil if it is gone.
func (e *ecs) maker(s *snapshot) *image {
	for _, img := range e.images {
		if img.id == s.image {
			return img
		}
	}
	return nil
}

// describeSnapshot tells of a snapshot: while its image is made, and if that fails, it looks as
// if it had failed.
func (e *ecs) describeSnapshot(s *snapshot) reply {
	status, progress, usage := "accomplished", "100%", "none"
	if img := e.maker(s); img != nil {
		usage = "image"
		if img.status != imageAvailable && img.status != imageDeprecated {
			status, progress = "failed", "0%"
		}
	}
	return reply{"SnapshotId": s.id, "RegionId": s.region, "Status": status, "Progress": progress, "Usage": usage,
		"SourceDiskSize": strconv.Itoa(s.gib), "SourceDiskType": "system", "SnapshotName": "Created_from_" + s.image,
		"CreationTime": apiTime(s.created), "Available": status == "accomplished", "Tags": tagList(s.tags)}
}

func (e *ecs) describeSnapshots(q *rpcRequest) (reply, *rpcError) {
	var ids []string
	if v := q.params["SnapshotIds"]; v != "" { // a JSON array, unlike the other lists
		if json.Unmarshal([]byte(v), &ids) != nil || len(ids) > 100 {
			return nil, rpcRefusal(http.StatusBadRequest, "InvalidSnapshotIds.Malformed", "The specified SnapshotIds is not a JSON array of up to 100.")
		}
	}
	var found []*snapshot
	for _, s := range slices.Backward(e.snapshots) { // newest first
		if s.region == q.params["RegionId"] && wanted(ids, s.id) {
			found = append(found, s)
		}
	}
	p, err := q.page(len(found))
	if err != nil {
		return nil, err
	}
	list := []reply{}
	for _, s := range found[p.from:p.to] {
		list = append(list, e.describeSnapshot(s))
	}
	r := p.head(q, len(found))
	r["Snapshots"] = reply{"Snapshot": list}
	return r, nil
}

// deleteSnapshot deletes a snapshot that no image uses. It ignores one that is not there.
func (e *ecs) deleteSnapshot(q *rpcRequest) (reply, *rpcError) {
	if err := q.need("SnapshotId"); err != nil {
		return nil, err
	}
	if _, err := q.bool("Force"); err != nil {
		return nil, err
	}
	for i, s := range e.snapshots {
		if s.id != q.params["SnapshotId"] || s.region != q.params["RegionId"] {
			continue
		}
		if e.maker(s) != nil {
			return nil, rpcRefusal(http.StatusForbidden, "SnapshotCreatedImage", "The snapshot has been used to create user defined image(s).")
		}
		e.snapshots = slices.Delete(e.snapshots, i, i+1)
		break
	}
	return reply{}, nil
}

// taggedAtOnce is the number of resources in one request.
const taggedAtOnce = 50

// tagged is a resource that has tags.
type tagged struct {
	kind, id string
	tags     *map[string]string
}

// tagTargets returns the resources of a request, or all of the type if none is named.
func (e *ecs) tagTargets(q *rpcRequest) ([]tagged, *rpcError) {
	if err := q.need("ResourceType"); err != nil {
		return nil, err
	}
	var all []tagged
	switch kind := q.params["ResourceType"]; kind {
	case "image":
		for _, img := range e.images {
			if img.region == q.params["RegionId"] && img.owner == "self" {
				all = append(all, tagged{kind, img.id, &img.tags})
			}
		}
	case "snapshot":
		for _, s := range e.snapshots {
			if s.region == q.params["RegionId"] {
				all = append(all, tagged{kind, s.id, &s.tags})
			}
		}
	default:
		return nil, rpcRefusal(http.StatusNotFound, "InvalidResourceType.NotFound", "The ResourceType %q is not known.", kind)
	}
	ids := q.list("ResourceId")
	if ids == nil {
		return all, nil
	}
	if len(ids) > taggedAtOnce {
		return nil, rpcRefusal(http.StatusBadRequest, "NumberExceed.ResourceIds", "The maximum number of ResourceIds is exceeded.")
	}
	var out []tagged
	for _, id := range ids {
		i := slices.IndexFunc(all, func(t tagged) bool { return t.id == id })
		if i < 0 {
			return nil, rpcRefusal(http.StatusNotFound, "InvalidResourceId.NotFound", "The specified ResourceId %q is not found in our records.", id)
		}
		out = append(out, all[i])
	}
	return out, nil
}

func (e *ecs) tagResources(q *rpcRequest) (reply, *rpcError) {
	if err := q.need("ResourceId.1", "Tag.1.Key"); err != nil {
		return nil, err
	}
	tags, err := q.tags()
	if err != nil {
		return nil, err
	}
	targets, err := e.tagTargets(q)
	if err != nil {
		return nil, err
	}
	for _, t := range targets {
		to := maps.Clone(*t.tags)
		if to == nil {
			to = map[string]string{}
		}
		maps.Copy(to, tags)
		*t.tags = to
	}
	return reply{}, nil
}

func (e *ecs) untagResources(q *rpcRequest) (reply, *rpcError) {
	if err := q.need("ResourceId.1"); err != nil {
		return nil, err
	}
	all, err := q.bool("All")
	if err != nil {
		return nil, err
	}
	targets, err := e.tagTargets(q)
	if err != nil {
		return nil, err
	}
	keys := q.list("TagKey")
	for _, t := range targets {
		to := maps.Clone(*t.tags)
		maps.DeleteFunc(to, func(k, _ string) bool { return all && keys == nil || slices.Contains(keys, k) })
		*t.tags = to
	}
	return reply{}, nil
}

func (e *ecs) listTagResources(q *rpcRequest) (reply, *rpcError) {
	want, err := q.tags()
	if err != nil {
		return nil, err
	}
	targets, err := e.tagTargets(q)
	if err != nil {
		return nil, err
	}
	list := []reply{}
	for _, t := range targets {
		if !hasTags(*t.tags, want) {
			continue
		}
		for _, k := range slices.Sorted(maps.Keys(*t.tags)) {
			list = append(list, reply{"ResourceType": t.kind, "ResourceId": t.id, "TagKey": k, "TagValue": (*t.tags)[k]})
		}
	}
	return reply{"NextToken": "", "TagResources": reply{"TagResource": list}}, nil
}
