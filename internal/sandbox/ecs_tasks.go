package sandbox

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// taskAction is the action of all tasks that there are.
const taskAction = "ImportImage"

// apiTime is the time format of the API; "" for none.
func apiTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05Z")
}

func percentText(n int) string { return strconv.Itoa(n) + "%" }

// commaList returns the items of a parameter that is a list; nil if it is absent.
func (q *rpcRequest) commaList(name string, most int) ([]string, *rpcError) {
	if q.params[name] == "" {
		return nil, nil
	}
	list := strings.Split(q.params[name], ",")
	if len(list) > most {
		return nil, rpcRefusal(http.StatusBadRequest, "InvalidParameter", "The specified %s has more than %d items.", name, most)
	}
	return list, nil
}

// wanted reports whether a value is among those that are asked for; nil is any.
func wanted(list []string, v string) bool { return list == nil || slices.Contains(list, v) }

func (e *ecs) describeTasks(q *rpcRequest) (reply, *rpcError) {
	ids, err := q.commaList("TaskIds", 100)
	if err != nil {
		return nil, err
	}
	states, err := q.commaList("TaskStatus", 10)
	if err != nil {
		return nil, err
	}
	action := q.params["TaskAction"]
	var found []*task
	for _, t := range slices.Backward(e.tasks) { // newest first
		if t.region == q.params["RegionId"] && wanted(ids, t.id) && wanted(states, t.status) &&
			(action == "" || action == taskAction) {
			found = append(found, t)
		}
	}
	p, err := q.page(len(found))
	if err != nil {
		return nil, err
	}
	list := []reply{}
	for _, t := range found[p.from:p.to] {
		list = append(list, t.reply())
	}
	r := p.head(q, len(found))
	r["TaskSet"] = reply{"Task": list}
	return r, nil
}

// reply is what a list of tasks tells of one: that it failed, but hardly why.
func (t *task) reply() reply {
	r := reply{"TaskId": t.id, "TaskAction": taskAction, "TaskStatus": t.status, "SupportCancel": strconv.FormatBool(t.cancelable()),
		"CreationTime": apiTime(t.created), "FinishedTime": apiTime(t.finished), "ResourceId": t.image}
	if t.status == taskFailed {
		r["FailedReason"] = t.errCode
	}
	return r
}

func (t *task) cancelable() bool { return t.status == taskWaiting || t.status == taskProcessing }

// task finds the task of a request.
func (e *ecs) task(q *rpcRequest) (*task, *rpcError) {
	id := q.params["TaskId"]
	if id == "" {
		return nil, missing("TaskId")
	}
	for _, t := range e.tasks {
		if t.id == id && t.region == q.params["RegionId"] {
			return t, nil
		}
	}
	return nil, rpcRefusal(http.StatusBadRequest, "InvalidTaskId.NotFound", "The specified \"TaskId\" is not found.")
}

func (e *ecs) describeTaskAttribute(q *rpcRequest) (reply, *rpcError) {
	t, err := e.task(q)
	if err != nil {
		return nil, err
	}
	r := t.reply()
	delete(r, "ResourceId")
	delete(r, "FailedReason")
	r["RegionId"] = t.region
	r["TaskProcess"] = percentText(t.progress)
	success, failed := 0, 0
	switch t.status {
	case taskFinished:
		success = 1
	case taskFailed:
		failed = 1
	}
	r["TotalCount"], r["SuccessCount"], r["FailedCount"] = 1, success, failed
	r["OperationProgressSet"] = reply{"OperationProgress": []reply{{
		"OperationStatus": t.status, "ErrorCode": t.errCode, "ErrorMsg": t.errReason,
		"RelatedItemSet": reply{"RelatedItem": []reply{{"Name": "ImageId", "Value": t.image}}},
	}}}
	return r, nil
}

// cancelTask stops an import and removes what it made.
func (e *ecs) cancelTask(q *rpcRequest) (reply, *rpcError) {
	t, err := e.task(q)
	if err != nil {
		return nil, err
	}
	if !t.cancelable() {
		return nil, rpcRefusal(http.StatusForbidden, "InvalidTaskId.IncorrectTaskStatus", "The specified task status is %s.", t.status)
	}
	t.status, t.finished = taskDeleted, q.now
	for _, img := range e.images {
		if img.id == t.image {
			e.dropSnapshots(img)
			e.drop(img)
			break
		}
	}
	return reply{}, nil
}
